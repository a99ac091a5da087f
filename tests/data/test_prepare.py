"""Prepared once, found again, and never half."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from llm.config.errors import Refused
from llm.data.corpus import Document
from llm.data.prepare import open_prepared, prepare
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from llm.tokenizer.words import Words

BYTES = {"_target_": "llm.tokenizer.bytes.Bytes"}
CHARS = {"_target_": "llm.tokenizer.chars.Chars"}


class Listed:
    """Documents from a list; counts how often they are read."""

    pieces = None
    dialogue = None

    def __init__(self, *documents: tuple[str, str]):
        self.listed = documents or (("née", "train"), ("one two", "train"), ("three", "val"))
        self.read = 0

    def describe(self):
        return {"corpus": "listed", "documents": self.listed}

    def documents(self):
        self.read += 1
        for text, split in self.listed:
            yield Document(text, split)


def test_files_hold_the_documents_between_ends_of_text(tmp_path):
    prepared = prepare(Listed(), Bytes(), BYTES, "listed", tmp_path)
    train = prepared.tokens("train")
    assert train.dtype == np.uint16
    assert train.tolist() == [256, *"née".encode(), 256, *b"one two", 256]
    assert prepared.document_starts("train").tolist() == [0, 5]
    assert prepared.tokens("val").tolist() == [256, *b"three", 256]
    assert prepared.floor() is None
    assert prepared.manifest["splits"]["train"] == {"documents": 2, "tokens": 14, "bytes": 11}
    for file, facts in prepared.manifest["files"].items():
        assert (prepared.folder / file).stat().st_size == facts["size"]
        assert len(facts["sha256"]) == 64
    assert {"train.bin", "val.bin", "vocabulary.json"} <= set(prepared.manifest["files"])


def test_the_same_is_found_and_not_made_again(tmp_path):
    corpus = Listed()
    first = prepare(corpus, Chars(), CHARS, "listed", tmp_path)
    assert corpus.read == 2  # the vocabulary, the tokens
    stamps = {file: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    second = prepare(corpus, Chars(), CHARS, "listed", tmp_path)
    assert corpus.read == 2
    assert second.folder == first.folder and second.fingerprint == first.fingerprint
    assert {file: file.stat().st_mtime_ns for file in first.folder.iterdir()} == stamps
    assert second.tokenizer.decode(second.tokens("train")) == "néeone two"


def test_other_text_or_tokenizer_is_another_folder(tmp_path):
    made = [
        prepare(Listed(), Bytes(), BYTES, "listed", tmp_path),
        prepare(Listed(), Chars(), CHARS, "listed", tmp_path),
        prepare(Listed(), Words(), {"_target_": "W", "max_vocab_size": 300}, "listed", tmp_path),
        prepare(Listed(), Words(), {"_target_": "W", "max_vocab_size": 301}, "listed", tmp_path),
        prepare(Listed(("a", "train"), ("b", "val")), Bytes(), BYTES, "listed", tmp_path),
    ]
    assert len({p.folder for p in made}) == len({p.fingerprint for p in made}) == 5


class Wide(Bytes):
    """A tokenizer of somebody's package, with more ids than two bytes hold."""

    vocab_size = 2**16 + 1
    eot = 2**16


def test_a_large_vocabulary_takes_four_bytes_and_may_be_a_plugin(tmp_path):
    prepared = prepare(Listed(), Wide(), {"_target_": "x"}, "listed", tmp_path)
    assert prepared.tokens("val").dtype == np.uint32
    assert prepared.tokens("val").tolist() == [2**16, *b"three", 2**16]
    assert isinstance(prepared.tokenizer, Wide)

    class Just(Bytes):
        vocab_size = 2**16
        eot = 2**16 - 1

    prepared = prepare(Listed(), Just(), {"_target_": "y"}, "listed", tmp_path)
    assert prepared.tokens("val").tolist() == [2**16 - 1, *b"three", 2**16 - 1]
    assert prepared.tokens("val").dtype == np.uint16


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "val.docs.npy", "vocabulary.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path, name, damage):
    folder = prepare(Listed(), Bytes(), BYTES, "listed", tmp_path).folder
    content = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[:-1] if damage == "shorter" else content + b"\n")
    with pytest.raises(Refused, match=rf"{name} .*; delete .* to prepare it again"):
        prepare(Listed(), Bytes(), BYTES, "listed", tmp_path)


@pytest.mark.parametrize("content", [None, "", '{"format"'])
def test_a_damaged_manifest_is_refused_by_name(tmp_path, content):
    folder = prepare(Listed(), Bytes(), BYTES, "listed", tmp_path).folder
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(Refused, match=r"manifest\.json .*; delete"):
        open_prepared(folder)


def test_another_format_is_refused_by_name(tmp_path):
    folder = prepare(Listed(), Bytes(), BYTES, "listed", tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(Refused, match="has format 0, not 2; delete it"):
        open_prepared(folder)


@pytest.mark.parametrize(
    "documents",
    [
        (("some text", "train"),),
        (("some text", "val"),),
        (("", "train"), ("some text", "val")),
    ],
)
def test_a_split_without_text_is_refused_and_leaves_nothing(tmp_path, documents):
    with pytest.raises(Refused, match=r"no (train|val) text"):
        prepare(Listed(*documents), Bytes(), BYTES, "listed", tmp_path)
    assert not list(tmp_path.glob("listed-*"))


def test_text_that_changes_while_it_is_read_is_not_taken(tmp_path):
    class Changing(Listed):
        def describe(self):
            return {"reads": self.read}

    with pytest.raises(Refused, match="changed while it was read"):
        prepare(Changing(), Bytes(), BYTES, "listed", tmp_path)
    assert not list(tmp_path.glob("listed-*"))


# Other processes

PROGRAM = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from llm.data.corpus import Document
    from llm.data.prepare import prepare
    from llm.tokenizer.bytes import Bytes

    root, mode = Path(sys.argv[1]), sys.argv[2]

    class Slow:
        pieces = dialogue = None

        def describe(self):
            return {"corpus": "slow"}

        def documents(self):
            with open(root / "reads", "a") as log:
                log.write("read\\n")
            for number in range(20):
                if mode == "dies" and number == 15:
                    os._exit(9)
                time.sleep(0.02)
                yield Document(f"document {number}", "val" if number % 4 == 0 else "train")

    while not (root / "go").exists():
        time.sleep(0.01)
    prepared = prepare(Slow(), Bytes(), {"_target_": "bytes"}, "slow", root / "data")
    print(prepared.fingerprint, len(prepared.tokens("train")), len(prepared.tokens("val")))
    """
)


def start(root, mode: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), mode], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_do_the_work_once(tmp_path):
    both = [start(tmp_path, "works") for _ in range(2)]
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1] != ""
    assert (tmp_path / "reads").read_text() == "read\n"


def test_death_in_the_middle_leaves_nothing_that_looks_whole(tmp_path):
    (tmp_path / "go").touch()
    dying = start(tmp_path, "dies")
    dying.communicate(timeout=300)
    assert dying.returncode == 9
    assert not list((tmp_path / "data").glob("slow-*"))
    next_one = start(tmp_path, "works")
    answer, _ = next_one.communicate(timeout=300)
    assert next_one.returncode == 0
    train = sum(1 + len(f"document {n}") for n in range(20) if n % 4) + 1
    val = sum(1 + len(f"document {n}") for n in range(20) if n % 4 == 0) + 1
    assert answer.split()[1:] == [str(train), str(val)]
    assert [path.name for path in (tmp_path / "data").glob("*slow-*.tmp")] == []
