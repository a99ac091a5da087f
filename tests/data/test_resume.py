"""Preparation that was killed goes on, to the same bytes; what is damaged is refused by name."""

import json
import os
import random
import shutil

import numpy as np
import pytest

from llm.config.errors import Refused
from llm.data import checksums, shards
from llm.data import prepare as preparation
from llm.data.__main__ import main
from llm.data.account import Account
from llm.data.corpus import Document
from llm.data.prepare import open_prepared, prepare
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.words import Words

NODE = {"_target_": "llm.tokenizer.words.Words", "max_vocab_size": 300}


class Parts:
    """Documents of one to three stretches, in three splits."""

    pieces = None
    dialogue = None

    def __init__(self) -> None:
        self.account = Account(left_out={"duplicates": 7})
        self.skipped_to = 0

    def describe(self):
        return {"corpus": "parts"}

    def documents(self):
        for number in range(14):
            split = "test" if number % 9 == 5 else "val" if number % 4 == 0 else "train"
            for part in range(number % 3):
                yield Document(f"part {part} of many words, ", split, True)
            yield Document(f"document {number} ends.", split)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """A commit after every batch, and two documents in a batch."""
    monkeypatch.setattr(preparation, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(preparation, "BATCH", 40)


def make(root):
    return prepare(Parts(), Words(max_vocab_size=300), NODE, "parts", root)


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def killed_at(moment: int, root) -> int | None:
    """Prepare in another process that dies at its so-manieth step; its steps if it had fewer."""
    pid = os.fork()
    if pid == 0:
        steps, code = 0, 1

        def counted(module, name):
            original = getattr(module, name)

            def step(*arguments, **named):
                nonlocal steps
                steps += 1
                if steps == moment:
                    os._exit(9)  # as SIGKILL: nothing is flushed, nothing is cleaned up
                return original(*arguments, **named)

            setattr(module, name, step)

        for name in ("fsync", "replace"):
            counted(os, name)
        for name in ("add", "commit", "finish"):
            counted(shards.Shards, name)
        counted(preparation.tokenizers, "save")
        counted(checksums, "facts_of")
        try:
            make(root)
            code = min(100 + steps, 255)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 9 or code > 100
    return None if code == 9 else code - 100


def test_killed_at_every_step_it_ends_with_the_same_bytes(tmp_path):
    expected = contents(make(tmp_path / "alone").folder)
    assert len(expected) == 11  # three splits of three files, vocabulary, manifest
    steps = killed_at(10**9, tmp_path / "counted")
    assert steps > 100
    for moment in range(1, steps + 1, steps // 14):
        root = tmp_path / f"killed-{moment}"
        assert killed_at(moment, root) is None
        assert contents(make(root).folder) == expected
        assert not list(root.glob(".*.tmp"))


def test_killed_again_and_again_it_gets_there(tmp_path):
    expected = contents(make(tmp_path / "alone").folder)
    dice, deaths = random.Random(1), 0
    while killed_at(dice.randint(15, 40), tmp_path / "killed") is None:
        deaths += 1
    assert deaths >= 3  # it did go on: from the beginning it needs more steps than it ever had
    assert contents(make(tmp_path / "killed").folder) == expected


def test_it_goes_on_where_it_stopped_and_says_so(tmp_path, capsys, monkeypatch):
    assert killed_at(60, tmp_path) is None
    encoded = []
    encode = Words.encode_array
    monkeypatch.setattr(
        Words, "encode_array", lambda self, t: (encoded.append(t), encode(self, t))[1]
    )
    prepared = make(tmp_path)
    assert 0 < len(encoded) < 20 and "document 13 ends." in encoded
    assert "parts: going on after " in capsys.readouterr().err
    assert prepared.manifest["account"]["left_out"] == {"duplicates": 7}
    assert prepared.splits == ("train", "val", "test")


def test_a_network_that_stops_costs_nothing_that_was_done(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "COMMIT_EVERY", 1e9)

    class Stopping(Parts):
        def documents(self):
            for number, document in enumerate(super().documents()):
                if number == 20:
                    raise Refused("the network stopped")
                yield document

    with pytest.raises(Refused, match="the network stopped"):
        prepare(Stopping(), Bytes(), {"_target_": "b"}, "parts", tmp_path)
    (journal,) = tmp_path.glob(".*.journal")
    assert json.loads(journal.read_text())["done"] > 8


@pytest.mark.parametrize("damage", ["garbage", "short files", "other format", "no files"])
def test_a_journal_that_cannot_be_trusted_begins_anew(tmp_path, damage):
    expected = contents(make(tmp_path / "alone").folder)
    assert killed_at(60, tmp_path) is None
    (journal,), (working,) = tmp_path.glob(".*.journal"), tmp_path.glob(".*.tmp")
    if damage == "garbage":
        journal.write_text("{")
    elif damage == "short files":
        os.truncate(working / "train.bin", 10)
    elif damage == "other format":
        journal.write_text(json.dumps({**json.loads(journal.read_text()), "format": 0}))
    else:
        shutil.rmtree(working)
    assert contents(make(tmp_path).folder) == expected


# Checks


def altered(file, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["train.bin", "test.docs.npy", "vocabulary.json"])
def test_an_altered_file_is_refused_by_name(tmp_path, name):
    folder = make(tmp_path).folder
    altered(folder / name, 130)
    with pytest.raises(Refused, match=rf"{name} was altered.*; delete .* to prepare it again"):
        make(tmp_path)


def test_a_foreign_file_or_manifest_is_refused_by_name(tmp_path):
    one = make(tmp_path / "one").folder
    altered_text = type("Other", (Parts,), {"describe": lambda self: {"corpus": "other"}})
    other = prepare(altered_text(), Bytes(), {"_target_": "b"}, "other", tmp_path / "two").folder
    (one / "val.bin").write_bytes((other / "val.bin").read_bytes())
    with pytest.raises(Refused, match=r"val\.bin has \d+ bytes instead of"):
        open_prepared(one)
    shutil.rmtree(one)
    shutil.copytree(other, one)  # whole, and of something else
    with pytest.raises(Refused, match=r"manifest\.json is of another corpus; delete"):
        make(tmp_path / "one")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "corpus": {"corpus": "parts"}}))
    with pytest.raises(Refused, match=r"manifest\.json was altered"):
        open_prepared(other)


def test_a_large_file_is_opened_by_samples_and_verified_whole(tmp_path):
    file = tmp_path / "large.bin"
    size = 40_000_000
    np.arange(size // 4, dtype=np.uint32).tofile(file)
    files = {"large.bin": checksums.facts_of(file)}
    assert checksums.problems(tmp_path, files, full=True) == {}
    for place in (0, size - 1):  # its ends are among the samples
        altered(file, place)
        assert "altered" in checksums.problems(tmp_path, files, full=False)["large.bin"]
        altered(file, place)
    altered(file, size // 3 + 200_000)
    assert checksums.problems(tmp_path, files, full=False) == {}
    assert "altered" in checksums.problems(tmp_path, files, full=True)["large.bin"]


def test_text_is_hashed_once_while_nobody_touches_it(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("some text")
    os.utime(text, (1e9, 1e9))
    hashed = []
    monkeypatch.setattr(checksums, "sha256", lambda f: (hashed.append(f), f.read_text())[1])
    # as if written long ago: nothing can set the time of the last change
    later = checksums.time.time_ns() + 10**10
    monkeypatch.setattr(checksums.time, "time_ns", lambda: later)

    def asked() -> str:
        with checksums.remembering(tmp_path / "memory.json"):
            return checksums.sha256_of_text(text)

    assert asked() == asked() == "some text" and len(hashed) == 1
    text.write_text("same size")
    os.utime(text, (1e9, 1e9))  # an editor that restores the time
    assert asked() == "same size" and len(hashed) == 2
    (tmp_path / "memory.json").write_text("{")
    assert asked() == "same size" and len(hashed) == 3
    monkeypatch.setattr(checksums.time, "time_ns", lambda: text.stat().st_ctime_ns + 10**9)
    text.write_text("too fresh")
    assert asked() == asked() == "too fresh" and len(hashed) == 5


def test_ls_and_verify(tmp_path, capsys):
    outputs = ["--outputs", str(tmp_path)]
    assert main([*outputs, "ls"]) == 0
    assert "nothing is prepared" in capsys.readouterr().err
    make(tmp_path / "data")
    second = prepare(Parts(), Bytes(), {"_target_": "llm.x.Bytes"}, "second", tmp_path / "data")
    assert main([*outputs, "ls"]) == 0
    head, parts, other, *accounts = capsys.readouterr().out.splitlines()
    assert (
        head.split()
        == "name tokens documents bytes bytes/token tokenizer revision checksum".split()
    )
    assert parts.startswith("parts-") and " 14 " in parts and "Words 273" in parts
    assert other.endswith(" ok") and "Bytes 257" in other
    assert ["left out or mended: duplicates 7" in line for line in accounts] == [True, True]
    assert main([*outputs, "verify"]) == 0
    assert capsys.readouterr().out.count(": whole") == 2
    altered(second.folder / "train.bin", 5)
    assert main([*outputs, "verify", "parts"]) == 0
    assert main([*outputs, "verify"]) == 1
    assert "train.bin was altered" in capsys.readouterr().out
    assert main([*outputs, "ls"]) == 0
    assert "DAMAGED: train.bin was altered" in capsys.readouterr().out
    assert main([*outputs, "verify", "missing"]) == 2


@pytest.mark.slow
def test_ten_kills_of_the_command(tmp_path):
    from experiments.data.kill import trial

    assert trial(kills=10, megabytes=20, seed=0, folder=tmp_path, extra=[]) == []
