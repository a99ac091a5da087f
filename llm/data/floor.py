"""The lowest loss that is possible: an instrument's true probabilities, token by token."""

import numpy as np

from llm.data.corpus import Instrument
from llm.tokenizer.base import Tokenizer


def floor_of(
    corpus: Instrument, tokenizer: Tokenizer, ids: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True nats and skill of each target in a stream of documents.

    A piece of the source belongs to the token that holds its first byte, and a token has the skill
    of the piece that holds its own first byte; so the nats of a document are the same for every
    lossless tokenizer, however it cuts.

    Args:
        ids: end-of-text, document, end-of-text, …, end-of-text (n,)
        starts: where the end-of-text before each document stands
    Returns:
        nats (n − 1,) float64 and skills (n − 1,) uint8 of ids[1:]
    """
    nats = np.zeros(len(ids) - 1)
    skills = np.zeros(len(ids) - 1, np.uint8)
    ends = [*starts[1:], len(ids) - 1]
    for start, end in zip(starts, ends, strict=True):
        tokens = ids[start + 1 : end]  # the document; ids[end] closes it
        pieces = [tokenizer.token_bytes(int(token)) for token in tokens]
        text = b"".join(pieces).decode()
        score = corpus.score(text)
        if not score.accepted:
            raise ValueError(f"the corpus does not accept its own document: {score.outside}")
        # Targets of this document are nats[start : end]: its tokens, then the end-of-text.
        # All places are in bytes: a token may begin inside a character.
        token_ends = np.cumsum([len(piece) for piece in pieces])
        piece_ends = _byte_offsets(text)[score.ends[:-1]]
        piece_starts = np.concatenate([[0], piece_ends])
        token_starts = np.concatenate([[0], token_ends])
        owner = np.searchsorted(token_ends, piece_starts, side="right")
        np.add.at(nats[start:end], owner, score.nats)
        skills[start:end] = score.skills[np.searchsorted(piece_ends, token_starts, "right")]
    return nats, skills


def _byte_offsets(text: str) -> np.ndarray:
    """Where each character begins in the UTF-8 of `text`, and where the last one ends."""
    if text.isascii():
        return np.arange(len(text) + 1)
    return np.concatenate([[0], np.cumsum([len(character.encode()) for character in text])])
