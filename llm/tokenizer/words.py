"""Every frequent word is an id, and bytes are there for the rest."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated

import numpy as np

from llm.config.errors import Refused
from llm.config.types import Between
from llm.tokenizer.base import ArrayTokenizer, text_of, well_formed
from llm.tokenizer.pieces import PIECES

#: Id 0 is end-of-text, ids 1 to 256 are the bytes.
FIRST_PIECE = 257
#: Characters cut into pieces at once: bounds memory (a piece is a Python string of 60 bytes).
STRETCH = 1 << 20


class Words(ArrayTokenizer):
    """Ids: end-of-text, the 256 bytes, then pieces of text as `PIECES` cuts it.

    The pieces are those that the corpus lists, else the most frequent ones, up to
    `max_vocab_size` ids in all. A piece of one byte is that byte's id, and an unknown piece is
    spelt in bytes: lossless on every text.
    """

    needs_fit = True
    eot = 0

    def __init__(self, *, max_vocab_size: Annotated[int, Between(FIRST_PIECE)] = 8192) -> None:
        self.max_vocab_size = max_vocab_size
        self.vocab_size = 0
        self._table: list[bytes] = []
        self._ids: dict[str, int] = {}

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        room = self.max_vocab_size - FIRST_PIECE
        if pieces is None:
            seen: Counter[str] = Counter()
            for text in texts:
                for cut in pieces_by_stretch(well_formed(text)):
                    seen.update(cut)
            # Of equally frequent pieces the alphabet's first, so that the order of texts is idle.
            ranked = sorted(_longer_than_a_byte(seen), key=lambda piece: (-seen[piece], piece))
            self._become(ranked[:room])
            return
        listed = list(dict.fromkeys(_longer_than_a_byte(pieces)))
        if len(listed) > room:
            raise Refused(
                f"is {self.max_vocab_size}, but this corpus lists {len(listed)} words, which need "
                f"{len(listed) + FIRST_PIECE} ids",
                "tokenizer.max_vocab_size",
            )
        self._become(listed)

    def _become(self, pieces: list[str]) -> None:
        for piece in pieces:
            if PIECES.findall(piece) != [piece]:
                raise ValueError(f"{piece!r} is not one piece of text as PIECES cuts it")
        self.vocab_size = FIRST_PIECE + len(pieces)
        self._table = [b"", *(bytes([value]) for value in range(256))]
        self._table += [piece.encode() for piece in pieces]
        self._ids = {chr(value): 1 + value for value in range(128)}
        self._ids |= {piece: FIRST_PIECE + i for i, piece in enumerate(pieces)}

    def encode_array(self, text: str) -> np.ndarray:
        if not self.vocab_size:
            raise RuntimeError("this Words has no vocabulary yet: call fit or restore first")
        parts = [self._ids_of(pieces) for pieces in pieces_by_stretch(well_formed(text))]
        return np.concatenate([np.zeros(0, dtype=np.uint32), *parts])

    def _ids_of(self, pieces: list[str]) -> np.ndarray:
        ids = list(map(self._ids.get, pieces))
        if None in ids:
            spelt: list[int] = []
            for piece, known in zip(pieces, ids, strict=True):
                if known is None:
                    spelt.extend(1 + value for value in piece.encode())
                else:
                    spelt.append(known)
            return np.array(spelt, dtype=np.uint32)
        return np.array(ids, dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self, token: int) -> bytes:
        return self._table[token]

    def state(self) -> dict[str, object]:
        pieces = [piece.decode() for piece in self._table[FIRST_PIECE:]]
        return {"cut_by": PIECES.pattern, "pieces": pieces}

    def restore(self, state: dict[str, object]) -> None:
        # The pattern is compared, never compiled: a vocabulary may come from anybody.
        if state["cut_by"] != PIECES.pattern:
            raise Refused(
                "this vocabulary of words was made by a version that cuts text differently; "
                "prepare the data again, or open it with that version"
            )
        pieces = state["pieces"]
        if not isinstance(pieces, list) or len(set(pieces)) != len(pieces):
            raise ValueError("pieces are not a list of different strings")
        self._become(pieces)


def pieces_by_stretch(text: str) -> Iterator[list[str]]:
    """The pieces of `text`, those of about a stretch at a time."""
    at, length = 0, STRETCH
    while at < len(text):
        pieces = PIECES.findall(text, at, at + length)
        if at + length < len(text):
            del pieces[-2:]  # they may look different with what follows: an apostrophe and a letter
            if not pieces:
                length *= 2
                continue
        yield pieces
        at, length = at + sum(map(len, pieces)), STRETCH


def _longer_than_a_byte(pieces: Iterable[str]) -> Iterable[str]:
    return (piece for piece in map(well_formed, pieces) if len(piece.encode()) > 1)
