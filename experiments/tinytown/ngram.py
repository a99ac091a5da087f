"""How far do the last few pieces carry? An interpolated n-gram ladder beside the floor.

    python experiments/tinytown/ngram.py [--documents N] [--val-documents N] [NAME=VALUE ...]

Counts n-grams of pieces in training documents of Tiny Town (NAME=VALUE are its parameters, such
as people=50) and reports nats per piece on validation documents for n = 1 … 5, with the excess
over the floor, overall and by skill.

Smoothing is modified Kneser-Ney, interpolated (Chen and Goodman, 1998, section 3):
p(w | h) = (c(h w) − D(c)) / c(h) + γ(h) p(w | h'), with h' the history without its first piece and
D estimated from the numbers of n-grams seen once to four times. The longest n-grams are counted
as they occur, the shorter ones by how many different pieces stand before them.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from llm.data.corpus import Instrument
from llm.data.tinytown import Tinytown
from llm.tokenizer.pieces import pieces_of

LADDER = 5


@dataclass
class _Order:
    """n-grams of one length: compact ids by key, and the statistics of a smoothed estimate."""

    keys: np.ndarray  # (types,) sorted: id of the first n − 1 pieces · V + the last piece
    raw: np.ndarray  # (types,) how often each occurs
    before: np.ndarray  # (types,) how many different pieces stand before it
    context: np.ndarray  # (types,) id of the first n − 1 pieces
    n_contexts: int


class Ladder:
    """n-gram estimates of every length up to `LADDER` from one pass over the documents.

    `pieces` is the vocabulary; texts are cut by the house's regular expression.
    """

    def __init__(self, pieces: list[str], texts: list[str]):
        self.ids = {piece: number for number, piece in enumerate(["", *pieces])}  # "" is the end
        self.start = len(self.ids)  # stands before every document
        stream, real = self._stream(texts)
        self.orders: list[_Order] = []
        grams = np.zeros(len(stream), dtype=np.int64)  # ids of the 0-grams: all the same
        counts = 1
        for n in range(1, LADDER + 2):
            context = np.roll(grams, 1) if n > 1 else grams
            keys, longer = np.unique(context * (self.start + 1) + stream, return_inverse=True)
            raw = np.bincount(longer[real], minlength=len(keys))
            if n > 1:
                _, first = np.unique(longer[real], return_index=True)
                suffix = grams[real][first]  # the same piece and n − 2 before it
                before = np.bincount(suffix, minlength=len(self.orders[-1].keys))
                self.orders[-1].before = before
            self.orders.append(_Order(keys, raw, raw, keys // (self.start + 1), counts))
            grams, counts = longer, len(keys)
        self.orders.pop()  # one longer than the ladder, only for `before`

    def _stream(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All documents in one row, `LADDER` starts before each, and where their pieces are."""
        row: list[int] = []
        for text in texts:
            row += [self.start] * LADDER
            row += [self.ids[piece] for piece in pieces_of(text)]
            row.append(0)
        stream = np.array(row, dtype=np.int64)
        return stream, np.flatnonzero(stream != self.start)

    def nats(self, texts: list[str]) -> np.ndarray:
        """−log p of every piece (and end) of `texts` in a row, for n = 1 … 5: (5, pieces)."""
        stream, real = self._stream(texts)
        found = [np.zeros(len(stream), dtype=np.int64)]  # ids of the n-grams; −1 if never seen
        for order in self.orders:
            context = np.roll(found[-1], 1) if len(found) > 1 else found[-1]
            keys = context * (self.start + 1) + stream
            place = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            found.append(np.where((order.keys[place] == keys) & (context >= 0), place, -1))
        lower = np.full(len(real), 1.0 / self.start)
        ladder = []
        for n, order in enumerate(self.orders, start=1):
            gram = found[n][real]
            context = found[n - 1][real - 1] if n > 1 else found[0][real]
            ladder.append(-np.log(_estimate(order, order.raw, gram, context, lower)))
            lower = _estimate(order, order.before, gram, context, lower)
        return np.stack(ladder)


def _estimate(
    order: _Order, counts: np.ndarray, gram: np.ndarray, context: np.ndarray, lower: np.ndarray
) -> np.ndarray:
    """p of the last piece of each n-gram, `lower` being the estimate of the order below."""
    seen = [max(1, int((counts == times).sum())) for times in range(1, 5)]
    share = seen[0] / (seen[0] + 2 * seen[1])
    discounts = [t - (t + 1) * share * seen[t] / seen[t - 1] for t in (1, 2, 3)]
    discount = np.array([0.0, *np.clip(discounts, 0.05, [0.95, 1.9, 2.8])])[np.minimum(counts, 3)]
    total = np.bincount(order.context, weights=counts, minlength=order.n_contexts)
    kept_back = np.bincount(order.context, weights=discount, minlength=order.n_contexts)
    known = (context >= 0) & (total[context] > 0)
    whole = np.where(known, total[context], 1.0)
    own = np.where(gram >= 0, (counts - discount)[gram], 0.0)
    return np.where(known, (own + kept_back[context] * lower) / whole, lower)


@dataclass
class Rungs:
    """What the ladder says of validation documents."""

    floor: float  # nats per piece
    nats: np.ndarray  # (5,) nats per piece for n = 1 … 5
    by_skill: dict[str, tuple[float, float, np.ndarray]]  # share, floor and excess (5,) a piece

    @property
    def excess(self) -> np.ndarray:
        return self.nats - self.floor


def climb(source: Instrument) -> Rungs:
    """Train the ladder on the training documents of `source`, evaluate on the others."""
    train, val = [], []
    for document in source.documents():
        (val if document.split == "val" else train).append(document.text)
    ladder = Ladder(source.pieces, train)
    nats = ladder.nats(val)
    scores = [source.score(text) for text in val]
    floor = np.concatenate([score.nats for score in scores])
    skills = np.concatenate([score.skills for score in scores])
    by_skill = {}
    for number, skill in enumerate(source.skills):
        of_skill = skills == number
        excess = (nats - floor)[:, of_skill].sum(axis=1) / len(floor)
        by_skill[skill] = (of_skill.mean(), floor[of_skill].sum() / len(floor), excess)
    return Rungs(float(floor.mean()), nats.mean(axis=1), by_skill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20_000, help="training documents")
    parser.add_argument("--val-documents", type=int, default=500)
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    asked = parser.parse_args()
    known = dict(parameter.split("=", 1) for parameter in asked.parameters)
    numbers = {name: float(value) if "." in value else int(value) for name, value in known.items()}
    source = Tinytown(documents=asked.documents, val_documents=asked.val_documents, **numbers)
    rungs = climb(source)
    print(f"floor {rungs.floor:.3f} nats per piece, vocabulary {len(source.pieces)} and the end")
    header = "".join(f"{n:>8}-gram" for n in range(1, LADDER + 1))
    print(f"{'':12} {'share':>6} {'floor':>7}{header}   (excess over the floor)")
    rows = {"all": (1.0, rungs.floor, rungs.excess), **rungs.by_skill}
    for name, (share, floor, excess) in rows.items():
        print(f"{name:12} {share:6.3f} {floor:7.3f}" + "".join(f"{x:13.3f}" for x in excess))


if __name__ == "__main__":
    main()
