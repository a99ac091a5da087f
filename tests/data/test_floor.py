"""The floor of a toy instrument, the same in nats per document for every tokenizer."""

import math

import numpy as np
import pytest

from llm.data.corpus import Document, Instrument, Outside, Score
from llm.data.floor import floor_of
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.words import Words

WORDS = [" a", " née", " 東京", " dog"]  # one to three bytes a character


class TwoStates:
    """A word is followed by another one (¾, evenly) or by the end (¼); the first one is given
    evenly. Nothing follows " dog" but the end, and that costs nothing."""

    pieces = WORDS
    dialogue = None
    skills = ("first", "next", "end")

    def __init__(self, texts: list[str] | None = None):
        self.texts = texts or [" a née dog", " 東京", " dog", " née née 東京 a", " a a a a dog"]

    def describe(self):
        return {"corpus": "two states", "texts": self.texts}

    def documents(self):
        for i, text in enumerate(self.texts * 2):
            yield Document(text, "val" if i < len(self.texts) else "train")

    def sample(self, seed: int) -> str:
        return self.texts[seed % len(self.texts)]

    def score(self, text: str) -> Score:
        words = [" " + word for word in text.split(" ")[1:]]
        nats, skills = [math.log(4)], [0]
        for before in words[:-1]:
            if before == " dog":
                return Score(*map(np.array, ([0], [0.0], [0])), Outside(0, "", []))
            nats.append(-math.log(0.75 / 4))
            skills.append(1)
        nats.append(0.0 if words[-1] == " dog" else math.log(4))
        skills.append(2)
        ends = np.cumsum([*map(len, words), 0])
        return Score(ends, np.array(nats), np.array(skills, np.uint8))


def stream(corpus, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    if tokenizer.needs_fit:
        tokenizer.fit(corpus.texts, None)
    ids, starts = [], []
    for text in corpus.texts:
        starts.append(len(ids))
        ids += [tokenizer.eot, *tokenizer.encode(text)]
    return np.array([*ids, tokenizer.eot]), np.array(starts)


def tokenizers() -> list:
    return [Bytes(), Chars(), Words()]


def test_it_is_an_instrument():
    assert isinstance(TwoStates(), Instrument)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: type(t).__name__)
def test_nats_per_document_do_not_depend_on_the_tokenizer(tokenizer):
    corpus = TwoStates()
    ids, starts = stream(corpus, tokenizer)
    nats, skills = floor_of(corpus, tokenizer, ids, starts)
    assert len(nats) == len(skills) == len(ids) - 1
    ends = [*starts[1:], len(ids) - 1]
    for text, start, end in zip(corpus.texts, starts, ends, strict=True):
        assert nats[start:end].sum() == pytest.approx(corpus.score(text).nats.sum())
        assert skills[start] == 0 and skills[end - 1] == 2  # the first token, and end-of-text
        assert nats[end - 1] == corpus.score(text).nats[-1]


def test_by_words_each_token_is_a_piece():
    corpus, tokenizer = TwoStates([" a a dog"]), Words()
    nats, skills = floor_of(corpus, tokenizer, *stream(corpus, tokenizer))
    step = -math.log(0.75 / 4)
    assert nats.tolist() == pytest.approx([math.log(4), step, step, 0.0])
    assert skills.tolist() == [0, 1, 1, 2]


def test_by_bytes_a_piece_is_paid_at_its_first_byte():
    """Behind é (two bytes) places in characters and in bytes differ."""
    corpus, tokenizer = TwoStates([" née 東京 a"]), Bytes()
    nats, skills = floor_of(corpus, tokenizer, *stream(corpus, tokenizer))
    step = -math.log(0.75 / 4)
    expected = np.zeros(5 + 7 + 2 + 1)
    expected[[0, 5, 12, 14]] = math.log(4), step, step, math.log(4)
    assert nats.tolist() == pytest.approx(expected.tolist())
    assert skills.tolist() == [0] * 5 + [1] * 9 + [2]


class Long(Bytes):
    """Tokens that cover several pieces: ids above 256 are " a née" as a whole."""

    def token_bytes(self, token: int) -> bytes:
        return " a née".encode() if token == 300 else super().token_bytes(token)


def test_a_token_over_several_pieces_pays_for_all_of_them():
    corpus, tokenizer = TwoStates([" a née dog"]), Long()
    ids = np.array([256, 300, *b" dog", 256])
    nats, skills = floor_of(corpus, tokenizer, ids, np.array([0]))
    step = -math.log(0.75 / 4)
    assert nats.tolist() == pytest.approx([math.log(4) + step, step, 0, 0, 0, 0.0])
    assert skills.tolist() == [0, 1, 1, 1, 1, 2]


def test_a_document_outside_the_language_is_the_corpus_contradicting_itself():
    corpus, tokenizer = TwoStates([" dog a"]), Bytes()
    with pytest.raises(ValueError, match="does not accept its own document"):
        floor_of(corpus, tokenizer, *stream(corpus, tokenizer))
