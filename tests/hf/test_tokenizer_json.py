"""`tokenizer.json` against our tokenizers: the same ids for any text, in the tools of others."""

import copy
import functools
import json
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Judge

from llm.hf.tokenizer_json import (
    END,
    as_bytes,
    as_text,
    byte_pairs_of,
    merges_of,
    tokenizer_files,
)
from llm.tokenizer.bpe import BPE
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.gpt2 import GPT2, _packaged_merges
from llm.tokenizer.words import Words

TEXT = """Once upon a time, in 1984, there wasn't a café\u00a0— naïve "Zoë" said:

  “It's 3.5 €!”\r
\tline\u2028sep \u3000wide  日本語 🙂👩‍👩‍👧 ﬁne ǅ Ⅷ ½ ٣٤ e\u0301 \x1c\x1d\x85 end  """
LETTERS = (
    "aeb tsñé'’ \n\t\r\u00a0\u2028\x85\x1c1２Ⅷ½!?<|>_日🙂\u0301\u200d\ufeffﬁ" + string.ascii_letters
)
TEXTS = st.text(st.one_of(st.sampled_from(LETTERS), st.characters(exclude_categories=("Cs",))))


def fitted(kind):
    tokenizer = kind()
    if tokenizer.needs_fit:
        tokenizer.fit([TEXT, "the cat sat on the mat; it isn't there. " * 3], None)
    return tokenizer


@functools.cache
def content_of(kind):
    ours = fitted(kind)
    return ours, tokenizer_files(ours, 64)["tokenizer.json"]


@pytest.fixture(
    scope="module", params=[GPT2, BPE, Bytes, Words, Chars], ids=lambda kind: kind.__name__
)
def pair(request):
    ours, content = content_of(request.param)
    judge = Judge.from_str(json.dumps(content))
    judge.encode_special_tokens = True  # as tokenizer_config.json asks
    return ours, judge


@settings(max_examples=60)
@given(text=TEXTS)
@example(text=END)
@example(text=TEXT)
def test_any_text_has_the_same_ids(pair, text):
    ours, judge = pair
    ids = ours.encode(text)
    assert judge.encode(text).ids == ids
    assert judge.decode(ids) == ours.decode(ids)


def test_a_long_text_and_the_end_have_the_same_ids(pair):
    ours, judge = pair
    text = TEXT * 20 + f"{END} is text{END}"
    assert judge.encode(text).ids == ours.encode(text)
    assert judge.get_vocab_size() == ours.vocab_size
    assert judge.token_to_id(END) == ours.eot
    assert judge.decode([*ours.encode("a b"), ours.eot]) == ours.decode(ours.encode("a b"))


def test_merges_are_those_that_were_published():
    published = [line.split() for line in _packaged_merges().decode().strip().split("\n")[1:]]
    assert content_of(GPT2)[1]["model"]["merges"] == published


@pytest.mark.parametrize("kind", [GPT2, BPE])
def test_byte_pairs_come_back(kind):
    """As we write them, and as the hub has GPT-2's: merges as texts, the pattern built in."""
    ours, content = content_of(kind)
    published = copy.deepcopy(content)
    published["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    published["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    published["post_processor"] = {"type": "ByteLevel", "trim_offsets": False}
    for written in (content, published):
        found = byte_pairs_of(written)
        assert type(found) is kind
        assert found.state() == ours.state()


def test_other_kinds_of_tokenizers_do_not_come_back():
    _, content = content_of(BPE)
    merges = content["model"]["merges"]
    for part, changes in (
        ("model", {"type": "Unigram"}),
        ("model", {"merges": merges[::-1]}),
        ("model", {"vocab": {"a": 0}}),
        ("pre_tokenizer", {"pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True}]}),
        ("pre_tokenizer", {"pretokenizers": [{"type": "Metaspace"}]}),
    ):
        changed = {**content, part: {**content[part], **changes}}
        assert byte_pairs_of(changed) is None
    assert byte_pairs_of({**content, "normalizer": {"type": "NFC"}}) is None
    assert byte_pairs_of({**content, "added_tokens": []}) is None
    assert byte_pairs_of(content_of(Words)[1]) is None


def test_bytes_as_characters():
    assert as_text(b" \n!\xff") == "ĠĊ!ÿ"
    assert as_bytes(as_text(bytes(range(256)))) == bytes(range(256))
    assert as_bytes("▁a") == "▁a".encode()  # of another kind of vocabulary
    with pytest.raises(ValueError, match="no two tokens"):
        merges_of({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


def test_a_tokenizer_of_another_package_has_none():
    class Own(Bytes):
        pass

    assert tokenizer_files(Own(), 64) is None
