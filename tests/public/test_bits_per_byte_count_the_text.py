"""Bits per byte divide by the bytes of the text, whatever the tokenizer makes of it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.corpus import Document
from llm.data.prepare import prepare
from llm.evaluate import examination, examine, text_examination
from llm.tokenizer.bpe import BPE
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.words import Words
from tests.toy_models import randomised, reading, transformer


def fitted(kind, *texts):
    tokenizer = kind()
    tokenizer.fit(list(texts), None)
    return tokenizer


TOKENIZERS = [Bytes(), *(fitted(kind, "née und 東京 und 😀 " * 3) for kind in (BPE, Words, Chars))]


@given(st.sampled_from(TOKENIZERS), st.text(min_size=1), st.data())
@settings(max_examples=80)
def test_bytes_are_those_of_the_text(tokenizer, text, data):
    whole = text_examination(text, reading(tokenizer))
    assert whole.n_bytes == len(text.encode())
    n = data.draw(st.integers(1, whole.n_tokens))
    part = text_examination(text, reading(tokenizer), n)
    assert part.n_tokens == n
    if isinstance(tokenizer, Chars):  # a character each, known or not
        assert part.n_bytes == len(text[:n].encode())
    else:
        ids = tokenizer.encode(text)[:n]
        assert part.n_bytes == sum(len(tokenizer.token_bytes(token)) for token in ids)


class Lacking:
    """A corpus that names fewer characters than it has."""

    pieces, dialogue = ["abc"], None

    def describe(self):
        return {}

    def documents(self):
        yield Document("abc", "train")
        yield Document("aé", "val")
        yield Document("b東c", "val")


def test_a_split_of_unknown_characters_is_as_long_as_its_text(tmp_path, capsys):
    """A part of it has no bits per byte: of ids alone nobody can say how long the text was."""
    prepared = prepare(Lacking(), Chars(), {}, "lacking", tmp_path)
    assert "lacking: 2 characters are not in the vocabulary\n" in capsys.readouterr().err
    how = reading(prepared.tokenizer)
    model = randomised(transformer(vocab_size=prepared.tokenizer.vocab_size))
    whole = examination(prepared, how, None)
    assert whole.n_bytes == len("aéb東c".encode())
    metrics = examine(model, whole, how)
    bits = metrics["val/loss"] * whole.n_tokens / math.log(2)
    assert metrics["val/bpb"] == pytest.approx(bits / whole.n_bytes)
    assert examination(prepared, how, 1).n_bytes == 1  # the "a" before the first unknown one
    part = examination(prepared, how, 4)
    assert part.n_bytes is None and set(examine(model, part, how)) == {"val/loss"}


def test_what_cannot_be_encoded_is_said(llm_train, toy_text, capsys):
    from llm.evaluate_run import main as evaluate

    run = llm_train("tokenizer=chars").folder
    (toy_text.parent / "other.txt").write_text("a cät, a 東京 dog")
    assert evaluate([str(run), "--text", "other.txt"]) == 0
    out, err = capsys.readouterr()
    assert err == "llm.evaluate: the vocabulary lacks 4 characters of this text: ä , 東 京\n"
    n_bytes = len("a cät, a 東京 dog".encode())
    assert f"other.txt, {len('a cät, a 東京 dog') + 1} tokens, {n_bytes} bytes" in out
