"""Every character that the corpus uses is an id."""

from collections.abc import Iterable

import numpy as np

from llm.tokenizer.base import ArrayTokenizer, text_of, well_formed

UNKNOWN = "\ufffd"


class Chars(ArrayTokenizer):
    """Ids: the corpus's characters in code-point order, then end-of-text, then the unknown one.

    Lossless on text made of those characters; any other one becomes the unknown id, which decodes
    to U+FFFD.
    """

    needs_fit = True
    fits_every_split = True  # an alphabet: nothing is learnt from the other splits but which it is

    def __init__(self) -> None:
        self.vocab_size = 0
        self.eot = 0
        self.unk = 0  # any other character
        self._table: list[bytes] = []
        self._id_of_point = np.zeros(0, dtype=np.uint32)

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        seen: set[str] = set()
        for text in texts if pieces is None else pieces:
            seen.update(well_formed(text))
        self._become("".join(sorted(seen)))

    def _become(self, characters: str) -> None:
        n = len(characters)
        self.vocab_size, self.eot, self.unk = n + 2, n, n + 1
        self._table = [c.encode() for c in characters] + [b"", UNKNOWN.encode()]
        points = _points(characters)
        # One look-up per code point; the last entry stands for all points above the largest.
        highest = int(points[-1]) if n else -1
        self._id_of_point = np.full(highest + 2, n + 1, dtype=np.uint32)
        self._id_of_point[points] = np.arange(n, dtype=np.uint32)

    def encode_array(self, text: str) -> np.ndarray:
        if not self.vocab_size:
            raise RuntimeError("this Chars has no vocabulary yet: call fit or restore first")
        points = _points(well_formed(text))
        return self._id_of_point[np.minimum(points, len(self._id_of_point) - 1)]

    def decode(self, ids: Iterable[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self, token: int) -> bytes:
        return self._table[token]

    def state(self) -> dict[str, object]:
        return {"characters": b"".join(self._table[: self.eot]).decode()}

    def restore(self, state: dict[str, object]) -> None:
        characters = state["characters"]
        if not isinstance(characters, str) or sorted(set(characters)) != list(characters):
            raise ValueError("characters are not a sorted set")
        self._become(characters)


def _points(text: str) -> np.ndarray:
    """Code points of `text`: (n,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
