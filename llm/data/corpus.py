"""What a corpus is to the rest of the house: documents, and what determines them.

A corpus whose probabilities are known is also an `Instrument`: it can score any text, so that a
model's loss on it has a zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Document(NamedTuple):
    """One text of a split ("train", "val", "test"), or a stretch of a long one.

    `more` says that the next `Document` goes on with this text: so nobody has to hold a long one.
    It is cut where `llm.data.texts` cuts, which no tokenizer of the house notices. `key` is
    the hash of the whole text (`llm.data.survey.key_of`), given where this may be a part of it.
    """

    text: str
    split: str
    more: bool = False
    key: int | None = None


@dataclass(frozen=True)
class Dialogue:
    """How a conversation is written in a corpus, so that nobody types its markers.

    A turn of the user is `user + text + assistant`; the answer ends at `stop`.
    """

    user: str
    assistant: str
    stop: str


@runtime_checkable
class Corpus(Protocol):
    """A source of documents. The constructor only stores and checks its arguments.

    It may have an `account: Account`, which `documents()` fills anew each time: what it read,
    passed over, dropped and mended. The manifest of the prepared corpus keeps it. It may have
    `held_out: HeldOut | None`, where its text is split by hash.
    """

    #: Every string a word tokenizer must know, or None to count them in the documents.
    pieces: list[str] | None
    #: How to talk to a model of it, or None for plain continuation.
    dialogue: Dialogue | None

    def describe(self) -> dict[str, object]:
        """JSON facts that determine every document (with a content hash where it has files)."""

    def documents(self) -> Iterator[Document]:
        """All documents, in an order that is the same on every machine and every time.

        It is asked several times (for a vocabulary, for the tokens, to go on after an
        interruption), and should hold no more than it needs for the next document.
        """


class Outside(NamedTuple):
    """Where and why a text leaves the language of an instrument."""

    position: int  # character offset at which the piece begins
    piece: str  # what stands there ("" at the end of the text)
    expected: list[
        str
    ]  # pieces that could have stood there, likeliest first; one only if no other could


@dataclass(frozen=True)
class Score:
    """The true probabilities of one document, piece by piece.

    The pieces tile the text; the last has no characters and is the end of the document. Where
    `outside` is set the arrays cover the pieces before it.
    """

    ends: np.ndarray  # (n,) int64: character offset just behind each piece
    nats: np.ndarray  # (n,) float64: −log p(piece | everything before it in the document)
    skills: np.ndarray  # (n,) uint8: index into the instrument's `skills`
    outside: Outside | None = None

    @property
    def accepted(self) -> bool:
        return self.outside is None


@runtime_checkable
class Instrument(Corpus, Protocol):
    """A corpus with known probabilities."""

    #: Names of the skills that pieces need ("copy", "fact", …).
    skills: list[str]

    def sample(self, seed: int) -> str:
        """One document, a function of the corpus's parameters and `seed` alone."""

    def score(self, text: str) -> Score:
        """The probability of each piece of `text`, or where and why it leaves the language."""
