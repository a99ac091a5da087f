"""A byte-pair vocabulary of the corpus's own: trained by `tokenizers`, run by tiktoken.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; over bytes and
within the pieces of GPT-2's pattern.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np

from llm.config.types import Between
from llm.tokenizer.base import ArrayTokenizer, stretches, text_of, well_formed
from llm.tokenizer.byte_pairs import FIRST_IDS, PATTERN, bytes_of, encode, encoding_of

if TYPE_CHECKING:
    from tiktoken import Encoding

#: About how many characters the trainer gets at once.
LONGEST = 2_000
#: The bytes and end-of-text.
SMALLEST = len(FIRST_IDS) + 1


class BPE(ArrayTokenizer):
    """Ids: the 256 bytes in GPT-2's order, then the merges by priority, then end-of-text.

    Lossless on every text; a text's `<|endoftext|>` is ordinary text. The vocabulary is a function
    of the multiset of texts alone: neither their order nor the number of threads moves it.

    Args:
        vocab_size: ids in all; fewer where the text has no more pairs that occur twice
    """

    needs_fit = True

    def __init__(self, *, vocab_size: Annotated[int, Between(SMALLEST)] = 4096) -> None:
        self.wanted = vocab_size
        self.vocab_size = 0
        self.eot = 0
        self._table: list[bytes] = []
        self._encoding: Encoding | None = None

    def fit(self, texts: Iterable[str], pieces: list[str] | None) -> None:
        """Merges are counted in the texts; a list of `pieces` says nothing of frequencies."""
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        judge = Tokenizer(models.BPE())
        # Its built-in pattern is GPT-2's.
        judge.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=self.wanted - 1,
            min_frequency=2,  # a pair that occurs once is no regularity
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=False,
        )
        # It counts pieces as the texts stream by; its memory grows with the different ones only.
        judge.train_from_iterator(_cut(texts), trainer)
        ids = json.loads(judge.to_str())["model"]["vocab"]
        self._become([bytes_of(written) for written in sorted(ids, key=ids.__getitem__)])

    def _become(self, table: list[bytes]) -> None:
        if table[: len(FIRST_IDS)] != FIRST_IDS:
            raise ValueError("the first 256 pieces are not the bytes")
        self._encoding = encoding_of("bpe", table)
        self._table = [*table, b""]
        self.vocab_size, self.eot = len(table) + 1, len(table)

    def encode_array(self, text: str) -> np.ndarray:
        if self._encoding is None:
            raise RuntimeError("this BPE has no vocabulary yet: call fit or restore first")
        return encode(self._encoding, text)

    def decode(self, ids: Iterable[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self, token: int) -> bytes:
        return self._table[token]

    def state(self) -> dict[str, object]:
        """Pieces as JSON can carry any bytes: a character U+0000 to U+00FF each."""
        merged = [piece.decode("latin-1") for piece in self._table[len(FIRST_IDS) : -1]]
        return {"cut_by": PATTERN, "pieces": merged}

    def restore(self, state: dict[str, object]) -> None:
        # Compared, never compiled: a vocabulary may come from anybody.
        if state["cut_by"] != PATTERN:
            raise ValueError("cut by another pattern")
        pieces = state["pieces"]
        if not isinstance(pieces, list) or not all(isinstance(p, str) and p for p in pieces):
            raise ValueError("pieces are not a list of strings")
        self._become(FIRST_IDS + [piece.encode("latin-1") for piece in pieces])


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """The texts in parts of which the trainer's pieces are the texts' own, but for freaks.

    A merge takes the trainer the square of a piece's length: 300,000 times one letter took more
    than ten minutes. So a run without a place to cut is cut all the same.
    """
    for text in texts:
        for part in stretches(well_formed(text), LONGEST):
            for first in range(0, len(part), 2 * LONGEST):
                yield part[first : first + 2 * LONGEST]
