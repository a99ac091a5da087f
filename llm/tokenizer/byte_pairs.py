"""Byte-level byte-pair encoding as tiktoken runs it: for GPT-2's vocabulary and for trained ones.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from llm.tokenizer.base import stretches, well_formed

if TYPE_CHECKING:
    from tiktoken import Encoding

#: tiktoken's regex engine gives up (a panic) where about a million white-space characters stand
#: in a row before a word, so it gets stretches of this many characters.
STRETCH = 250_000

#: Pieces that no merge crosses: GPT-2's pattern, as tiktoken spells it for speed.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# GPT-2 writes a byte as a character, itself where it is printable and no space, else the next one
# from U+0100 on; ids 0 to 255 are the bytes in the order of those characters.
_PRINTABLE = [value for value in range(256) if chr(value).isprintable() and value != ord(" ")]
_OTHERS = [value for value in range(256) if value not in _PRINTABLE]
#: The byte of each of the first 256 ids.
FIRST_IDS = [bytes([value]) for value in _PRINTABLE + _OTHERS]
#: The byte that each of those characters stands for.
BYTE_OF = {chr(value): value for value in _PRINTABLE}
BYTE_OF |= {chr(256 + i): value for i, value in enumerate(_OTHERS)}


def bytes_of(written: Iterable[str]) -> bytes:
    """The bytes that GPT-2's characters stand for. Raises KeyError for another character."""
    return bytes(BYTE_OF[character] for character in written)


def encoding_of(name: str, pieces: list[bytes]) -> "Encoding":
    """tiktoken's encoding whose ids are `pieces` in order of their priority, then end-of-text.

    Raises ValueError where a piece is there twice.
    """
    import tiktoken

    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    if len(ranks) != len(pieces):
        raise ValueError("a piece has two ids")
    return tiktoken.Encoding(
        name,
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(pieces)},
        explicit_n_vocab=len(pieces) + 1,
    )


def encode(encoding: "Encoding", text: str) -> np.ndarray:
    """Ids of `text`, in which `<|endoftext|>` is ordinary text: (n,) uint32."""
    parts = stretches(well_formed(text), STRETCH)
    return np.concatenate([encoding.encode_to_numpy(part, disallowed_special=()) for part in parts])
