"""`data=tinytown`: stories about a small town, and questions, with exact probabilities."""

import hashlib
import os
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

from llm.config.errors import Refused
from llm.config.types import (
    UNRECORDED,
    Between,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    ProperFraction,
)
from llm.data.corpus import Dialogue, Document, Score
from llm.data.seeds import stream
from llm.data.tinytown.program import SKILLS, Drawn, Program, draw, read
from llm.data.tinytown.state import Style
from llm.data.tinytown.talk import document
from llm.data.tinytown.vocabulary import vocabulary
from llm.data.tinytown.workers import CHUNK, texts_in_parallel
from llm.data.tinytown.world import World, make_world

#: To be raised whenever the same parameters give other documents.
LANGUAGE = 1


class Tinytown:
    """An `Instrument` (llm/data/corpus.py) whose documents people enjoy reading.

    documents, val_documents: how many there are of each split.
    min_events, max_events: sentences of a story between its first and its farewell; any number
        between the two is as likely, few have less or more. They set the length of a document.
    people: inhabitants; each has six facts, so this asks for capacity.
    domains: places that a story can happen at, each with words of its own.
    stories: share of documents that begin with a story; the others begin with a question.
    questions: chance of one more question at the end of every story and every answer.
    noise: share of words of manner ("softly") drawn from all of them instead of the domain's own.
    world_seed: who lives there and what is true of them. seed: which documents are drawn.
    workers: processes that write documents; None for one a CPU core.
    """

    skills: list[str] = SKILLS
    dialogue = Dialogue(user="Q: ", assistant="\nA:", stop="\n")

    def __init__(
        self,
        *,
        documents: PositiveInt = 30_000,
        val_documents: PositiveInt = 500,
        min_events: NonNegativeInt = 2,
        max_events: PositiveInt = 5,
        people: Annotated[int, Between(2, 2000)] = 12,
        domains: Annotated[int, Between(1, 8)] = 8,
        stories: Fraction = 0.6,
        questions: ProperFraction = 0.6,
        noise: Fraction = 0.0,
        world_seed: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        workers: Annotated[PositiveInt | None, UNRECORDED] = None,
    ):
        if min_events > max_events:
            raise Refused(f"is {min_events}, more than max_events={max_events}", "min_events")
        self.parameters: dict[str, Any] = {
            "documents": documents,
            "val_documents": val_documents,
            "min_events": min_events,
            "max_events": max_events,
            "people": people,
            "domains": domains,
            "stories": stories,
            "questions": questions,
            "noise": noise,
            "world_seed": world_seed,
            "seed": seed,
        }
        self.workers = workers
        self._style = Style(min_events, max_events, noise)
        self._world: World | None = None

    @property
    def world(self) -> World:
        """Who lives in the town and what is true of them."""
        if self._world is None:
            known = self.parameters
            self._world = make_world(known["world_seed"], known["people"], known["domains"])
        return self._world

    @property
    def pieces(self) -> list[str]:
        """Every piece of the language, in an order that is the same on every machine."""
        return vocabulary(self.world)

    def describe(self) -> dict[str, object]:
        """The parameters, the language's version, and a hash of some samples as a witness."""
        witness = hashlib.sha256()
        for number in range(64):
            witness.update(self.sample(number).encode() + b"\x00")
        return {
            "source": "tinytown",
            "language": LANGUAGE,
            **self.parameters,
            "witness": witness.hexdigest(),
        }

    def documents(self) -> Iterator[Document]:
        """The training documents, then the validation documents."""
        texts: Iterator[str]
        workers = self.workers or os.cpu_count() or 1
        for split, count in (
            ("train", self.parameters["documents"]),
            ("val", self.parameters["val_documents"]),
        ):
            if workers == 1 or count <= CHUNK:
                texts = (text for n in range(count) for text in self.texts(split, n, n + 1))
            else:
                texts = texts_in_parallel(self.parameters, split, count, workers)
            for text in texts:
                yield Document(text, split)

    def texts(self, split: str, start: int, stop: int) -> list[str]:
        """The texts numbered `start` to `stop` (not included) of one split."""
        return ["".join(self.draw(split, number).pieces) for number in range(start, stop)]

    def draw(self, split: str, number: int) -> Drawn:
        """One document with the nats that drawing it took, piece by piece."""
        return draw(self._document(), stream(self.parameters["seed"], split, number).random)

    def sample(self, seed: int) -> str:
        """One document that is in neither split, a function of the parameters and `seed` alone."""
        return "".join(self.draw("sample", seed).pieces)

    def score(self, text: str) -> Score:
        """The true probability of each piece of `text`, or where and why it leaves the language.

        The text is read as the whole of a document. A beginning of one, such as a conversation
        that goes on, comes back with `outside.piece == ""` at its end (unless it could end there)
        and with the arrays covering all of it; a wrong word has another `outside.piece`. So an
        answer is right where the conversation up to and with it has no wrong word, and whole where
        its line end is among what was accepted.
        """
        read_off, outside = read(self._document(), text)
        return Score(
            ends=np.cumsum([len(piece) for piece in read_off.pieces], dtype=np.int64),
            nats=np.array(read_off.nats, dtype=np.float64),
            skills=np.array(read_off.skills, dtype=np.uint8),
            outside=outside,
        )

    def _document(self) -> Program:
        known = self.parameters
        return document(self.world, self._style, known["questions"], known["stories"])
