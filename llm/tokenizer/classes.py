"""What kind of text each token is: a handful of classes that mean the same for every tokenizer."""

import unicodedata
from collections.abc import Iterable

import numpy as np

from llm.tokenizer.base import Tokenizer

#: A word begins with a space or is the first of a line; without one before it, a token of letters
#: goes on with a word (or is one that stands after something else than a space).
CLASSES = [
    "word",
    "capitalised word",
    "part of a word",
    "digits",
    "punctuation",
    "white space",
    "end of text",
    "other",
]
_APOSTROPHES = "'\u2019"


def token_classes(tokenizer: Tokenizer, ids: Iterable[int]) -> np.ndarray:
    """Index into `CLASSES` of every id of the vocabulary: (vocab_size,) uint8.

    Only the ids given are looked at; the rest is "other".
    """
    classes_V = np.full(tokenizer.vocab_size, CLASSES.index("other"), np.uint8)
    for token in ids:
        name = (
            "end of text" if token == tokenizer.eot else class_of(tokenizer.token_bytes(int(token)))
        )
        classes_V[token] = CLASSES.index(name)
    return classes_V


def class_of(piece: bytes) -> str:
    """The class of a token's bytes; part of a character, or a mixture, is "other"."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "other"
    if not text.strip():
        return "white space" if text else "other"
    begins, text = text[0].isspace(), text.strip()
    letters = text.strip(_APOSTROPHES).replace("'", "").replace("\u2019", "")
    if letters and all(unicodedata.category(c)[0] in "LM" for c in letters):
        if letters[0].isupper():
            return "capitalised word"
        return "word" if begins else "part of a word"
    if all(unicodedata.category(c)[0] == "N" for c in text):
        return "digits"
    if all(unicodedata.category(c)[0] in "PS" for c in text):
        return "punctuation"
    return "other"
