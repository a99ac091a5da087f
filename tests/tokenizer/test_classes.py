"""Token classes mean the same for every tokenizer."""

import numpy as np
import pytest

from llm.tokenizer.bytes import Bytes
from llm.tokenizer.classes import CLASSES, class_of, token_classes
from llm.tokenizer.words import Words


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        (" town", "word"),
        ("\ntown", "word"),
        (" don't", "word"),
        ("ing", "part of a word"),
        ("ß", "part of a word"),
        (" Mia's", "capitalised word"),
        ("Mia", "capitalised word"),
        (" Élan", "capitalised word"),
        ("7", "digits"),
        (" 1984", "digits"),
        (" .", "punctuation"),
        ('"', "punctuation"),
        (" +", "punctuation"),
        ("'", "punctuation"),
        ("\n", "white space"),
        ("   ", "white space"),
        (" B2", "other"),
        ("", "other"),
    ],
)
def test_classes_by_example(piece, name):
    assert class_of(piece.encode()) == name


def test_half_a_character_is_other():
    assert class_of("ß".encode()[:1]) == "other"


def test_a_vocabulary_at_once():
    words = Words()
    words.fit([], [" town", " Mia", " ?", " 12"])
    text = words.encode(" Mia town 12 ?\n")
    ids = np.array([words.eot, *text])
    classes_V = token_classes(words, ids)
    assert classes_V.shape == (words.vocab_size,)
    names = [CLASSES[index] for index in classes_V[ids]]
    assert names == [
        "end of text",
        "capitalised word",
        "word",
        "digits",
        "punctuation",
        "white space",
    ]
    assert CLASSES[token_classes(Bytes(), [Bytes().eot])[Bytes().eot]] == "end of text"
