"""What every tokenizer owes the rest of the house."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.tokenizer.base import Tokenizer, array_of, load, save, stretches, well_formed
from llm.tokenizer.bpe import BPE
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.gpt2 import GPT2
from llm.tokenizer.stream import StreamDecoder
from llm.tokenizer.words import Words

CORPUS = ["Once upon a time, there was a cat.\n", "The cat's café: 42 naïve 🐈s!\n\n  The end."]
KINDS = [BPE, Bytes, Chars, GPT2, Words]
LOSSLESS = [BPE, Bytes, GPT2, Words]


def fitted(kind):
    tokenizer = kind()
    if tokenizer.needs_fit:
        tokenizer.fit(CORPUS, None)
    return tokenizer


FITTED = {kind: fitted(kind) for kind in KINDS}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def tokenizer(request):
    return FITTED[request.param]


def test_is_a_tokenizer(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert 0 <= tokenizer.eot < tokenizer.vocab_size


def test_the_corpus_comes_back(tokenizer):
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert all(type(token) is int for token in ids)
        array = array_of(tokenizer, text)
        assert array.dtype == np.uint32 and array.tolist() == ids
        assert tokenizer.decode(ids) == text


def test_no_text_is_no_ids(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text())
@example("<|endoftext|>")
@example("\x1c \x1d\x85\u2028\u3000 a\r\n'S 's it's")
def test_lossless_on_every_text(kind, text):
    tokenizer = FITTED[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_ids_decode_and_stream_alike(kind, data):
    tokenizer = FITTED[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    whole = tokenizer.decode(ids)
    raw = b"".join(tokenizer.token_bytes(i) for i in ids)
    assert whole == raw.decode("utf-8", "replace")
    assert tokenizer.decode(iter(ids)) == tokenizer.decode(np.array(ids, dtype=np.uint32)) == whole
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.finish() == whole


def test_end_of_text_is_silent(tokenizer):
    ids = tokenizer.encode("The cat")
    assert tokenizer.token_bytes(tokenizer.eot) == b""
    assert tokenizer.decode([tokenizer.eot, *ids, tokenizer.eot]) == "The cat"


def test_ids_outside_the_vocabulary_are_an_error(tokenizer):
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(IndexError):
            tokenizer.decode([outside])


def test_half_an_emoji_in_json_is_mended(tokenizer):
    cat = "\ud83d\udc08"  # a surrogate pair, as two characters
    assert tokenizer.decode(tokenizer.encode(cat)) == "🐈"
    assert tokenizer.encode("\ud83d") == tokenizer.encode("\ufffd")


def test_save_and_load(tokenizer, tmp_path):
    save(tokenizer, tmp_path / "tokenizer")
    again = load(tmp_path / "tokenizer")
    assert type(again) is type(tokenizer)
    assert (again.vocab_size, again.eot) == (tokenizer.vocab_size, tokenizer.eot)
    assert again.state() == tokenizer.state()
    text = "The dog's café — 43 🐈"
    assert again.encode(text) == tokenizer.encode(text)
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["vocabulary.json"]


def test_stream_waits_for_the_whole_character():
    stream = StreamDecoder(Bytes())
    assert [stream.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(ord("a")) == "a"


SPACES = st.text(alphabet="ab1'.!é \n\t\x1c\x1f\x85\xa0\u3000", max_size=40)


@given(text=SPACES, length=st.integers(1, 12))
@settings(max_examples=100)
def test_stretches_change_no_piece(text, length):
    """The judges are GPT-2's pattern in tiktoken's engine, and PIECES, on the uncut text."""
    from llm.tokenizer.gpt2 import _encoding
    from llm.tokenizer.pieces import PIECES

    parts = list(stretches(text, length))
    assert "".join(parts) == text
    assert [p for part in parts for p in PIECES.findall(part)] == PIECES.findall(text)
    encode = _encoding().encode_ordinary
    assert [i for part in parts for i in encode(part)] == encode(text)


def test_stretches_are_about_as_long_as_asked():
    parts = list(stretches("abcd " * 1000, 100))
    assert len(parts) > 45
    assert max(map(len, parts)) <= 105


def test_well_formed_leaves_text_alone():
    text = "naïve 🐈"
    assert well_formed(text) is text
