"""Every UTF-8 byte is an id: 257 ids, any text, no vocabulary to choose."""

from collections.abc import Iterable

import numpy as np

from llm.tokenizer.base import ArrayTokenizer, text_of, well_formed


class Bytes(ArrayTokenizer):
    """Ids 0 to 255 are the bytes, 256 is end-of-text. Lossless on every text."""

    vocab_size = 257
    eot = 256
    needs_fit = False

    _table = (*(bytes([value]) for value in range(256)), b"")

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        """Nothing to choose."""

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(well_formed(text).encode(), dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self, token: int) -> bytes:
        return self._table[token]

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, object]) -> None:
        """Nothing to restore."""
