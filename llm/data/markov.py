"""`data=markov`: an order-k source whose entropy is a formula, for questions of capacity."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Annotated

import numpy as np

from llm.config.errors import Refused
from llm.config.types import Between, NonNegativeFloat, NonNegativeInt, PositiveInt
from llm.data.corpus import Document, Outside, Score
from llm.data.seeds import stream
from llm.tokenizer.pieces import pieces_of

#: A document's first symbols, those that follow from others, and its end.
SKILLS = ["start", "chain", "end"]

#: The latest contexts whose successors are kept; others are made again when they come up.
_CONTEXTS = 1 << 18


class Markov:
    """An `Instrument`: each symbol depends on the `order` symbols before it.

    Every context has `successors` different symbols that may follow, chosen by hashing `seed` and
    the context, and so in random order: the i-th has a probability proportional to i^−zipf. That
    is the same multiset of probabilities in every context, so the entropy rate is their entropy,

        H = −Σ p_i ln p_i,   p_i = i^−zipf / Σ_j j^−zipf,

    ln(successors) at zipf=0, whichever contexts are frequent. The first `order` symbols of a
    document are drawn evenly from all, and its length is fixed, so that

        floor = (order · ln(symbols) + (length − order) · H) / (length + 1)  nats per piece,

    the end of the document being the last piece, which costs nothing. There are symbols^order
    contexts to learn: order and symbols ask for capacity, successors and zipf for precision.

    symbols: size of the alphabet. length: symbols of one document. table_seed: which symbols may
    follow which. seed: which documents are drawn.
    """

    skills: list[str] = SKILLS
    dialogue = None

    def __init__(
        self,
        *,
        documents: PositiveInt = 8_000,
        val_documents: PositiveInt = 200,
        order: PositiveInt = 2,
        symbols: Annotated[int, Between(2, 100_000)] = 32,
        successors: PositiveInt = 4,
        length: PositiveInt = 255,
        zipf: NonNegativeFloat = 1.0,
        table_seed: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
    ):
        if successors > symbols:
            raise Refused(f"is {successors}, more than symbols={symbols}", "successors")
        if order > length:
            raise Refused(f"is {order}, more than length={length}", "order")
        self.parameters: dict[str, int | float] = {
            "documents": documents,
            "val_documents": val_documents,
            "order": order,
            "symbols": symbols,
            "successors": successors,
            "length": length,
            "zipf": zipf,
            "table_seed": table_seed,
            "seed": seed,
        }
        self.order = order
        self.symbols = symbols
        self.successors = successors
        self.length = length
        self.pieces: list[str] = [" " + _letters(number) for number in range(symbols)]
        weights = [rank**-zipf for rank in range(1, successors + 1)]
        self._bounds = list(accumulate(weights))
        self._nats = [-math.log(weight / self._bounds[-1]) for weight in weights]
        self._table_seed = table_seed
        self._after = lru_cache(_CONTEXTS)(self._successors)

    @property
    def entropy_rate(self) -> float:
        """H in nats per symbol, once `order` symbols are known."""
        return math.fsum(math.exp(-nats) * nats for nats in self._nats)

    @property
    def floor(self) -> float:
        """Expected nats per piece of a document, its end included."""
        free = self.order * math.log(self.symbols)
        return (free + (self.length - self.order) * self.entropy_rate) / (self.length + 1)

    def describe(self) -> dict[str, object]:
        """The parameters: they determine every document."""
        return {"source": "markov", "version": 1, **self.parameters}

    def documents(self) -> Iterator[Document]:
        """The training documents, then the validation documents."""
        for split, count in (
            ("train", self.parameters["documents"]),
            ("val", self.parameters["val_documents"]),
        ):
            for number in range(int(count)):
                yield Document(self._draw(split, number), split)

    def sample(self, seed: int) -> str:
        """One document that is in neither split, a function of the parameters and `seed` alone."""
        return self._draw("sample", seed)

    def score(self, text: str) -> Score:
        """The true probability of each piece of `text`, or where and why it leaves the language.

        A beginning of a document comes back with `outside.piece == ""` at its end.
        """
        given = [*pieces_of(text), ""]
        known = {piece: number for number, piece in enumerate(self.pieces)}
        numbers: list[int] = []
        nats: list[float] = []
        wrong: list[str] | None = None  # what was expected where the text left the language
        for at, piece in enumerate(given):
            symbol = known.get(piece)
            if at == self.length:
                if piece:
                    wrong = [""]
                    break
                nats.append(0.0)
            elif at < self.order:
                if symbol is None:
                    wrong = self.pieces[:8]
                    break
                nats.append(math.log(self.symbols))
            else:
                after = self._after(tuple(numbers[at - self.order :]))
                if symbol not in after:
                    wrong = [self.pieces[number] for number in after[:8]]
                    break
                nats.append(self._nats[after.index(symbol)])
            if symbol is not None:
                numbers.append(symbol)
        read = given[: len(nats)]
        skills = [0] * self.order + [1] * (self.length - self.order) + [2]
        ends = np.cumsum([len(piece) for piece in read], dtype=np.int64)
        outside = None
        if wrong is not None:
            position = int(ends[-1]) if read else 0
            outside = Outside(position, given[len(read)], wrong)
        return Score(
            ends=ends,
            nats=np.array(nats, dtype=np.float64),
            skills=np.array(skills[: len(nats)], dtype=np.uint8),
            outside=outside,
        )

    def _successors(self, context: tuple[int, ...]) -> tuple[int, ...]:
        """What may follow `context`, likeliest first: the head of a Fisher-Yates shuffle."""
        uniform = stream("markov", self._table_seed, *context).random
        moved: dict[int, int] = {}  # what a shuffled list of all symbols would hold, where changed
        chosen = []
        for place in range(self.successors):
            other = place + int(uniform() * (self.symbols - place))
            chosen.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
        return tuple(chosen)

    def _draw(self, split: str, number: int) -> str:
        uniform = stream(int(self.parameters["seed"]), split, number).random
        numbers = [int(uniform() * self.symbols) for _ in range(self.order)]
        bounds, total, last = self._bounds, self._bounds[-1], self.successors - 1
        context = tuple(numbers)
        for _ in range(self.length - self.order):
            rank = min(bisect_right(bounds, uniform() * total), last)
            symbol = self._after(context)[rank]
            numbers.append(symbol)
            context = (*context[1:], symbol)
        return "".join([self.pieces[number] for number in numbers])


def _letters(number: int) -> str:
    """0, 1, … as a, b, … z, aa, ab, …: as the columns of a spreadsheet."""
    name = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        name = chr(ord("a") + digit) + name
    return name
