"""No file disappears without a word: what a folder's preparation read and passed over is one line.

Before, symlinked and unreadable subfolders were left out in silence, as was a folder of .py files
beside one README.md, while .ipynb_checkpoints/*.txt and ._a.txt were read.
"""

import os

import pytest

from llm.config.errors import Refused
from llm.data.__main__ import main
from llm.data.custom import Custom
from llm.data.prepare import prepare
from llm.tokenizer.bytes import Bytes


def custom(path, **options) -> Custom:
    return Custom(path=str(path), text_column="text", val_fraction=0.3, **options)


def read(path, **options) -> list[str]:
    return [document.text for document in custom(path, **options).documents()]


def write(folder, *names: str):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder


def test_the_line_counts_what_was_read_and_what_was_not(tmp_path, capsys):
    folder = write(tmp_path / "texts", "a.txt", "b/c.txt", "b/d.md", "e.rs", "f/g.rs", "Makefile")
    write(folder, ".git/config.txt", "b/.ipynb_checkpoints/d.md", "b/._c.txt", "h.pdf.gz")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    prepare(custom(folder), Bytes(), {"_target_": "llm.x.Bytes"}, "custom", tmp_path / "data")
    err = capsys.readouterr().err
    assert err.startswith("custom: read 3 files (.txt 2, .md 1; 42 bytes, 3 documents); ")
    passed = "passed over 8 (hidden 3, .rs 2, .pdf 1, broken link 1, no suffix 1; 58 bytes)"
    assert passed in err and "; held out 1 document (" in err and len(err.splitlines()) == 1
    prepare(custom(folder), Bytes(), {"_target_": "llm.x.Bytes"}, "custom", tmp_path / "data")
    assert capsys.readouterr().err == ""  # said once, and kept
    assert main(["--outputs", str(tmp_path), "ls"]) == 0
    assert passed in capsys.readouterr().out


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    folder = write(tmp_path / "texts", "a.txt", "b/c.txt")
    outside = write(tmp_path / "outside", "d.txt", "deep/e.txt")
    (folder / "0").symlink_to(outside)
    (folder / "b" / "loop").symlink_to(folder)
    (outside / "loop").symlink_to(outside / "deep" / "..")
    (folder / "self").symlink_to("self")
    (folder / "again").symlink_to(folder / "b", target_is_directory=True)
    (folder / "c.txt").symlink_to(folder / "b" / "c.txt")
    assert sorted(read(folder)) == [
        f"text of {n}" for n in ("a.txt", "b/c.txt", "d.txt", "deep/e.txt")
    ]
    found = custom(folder).found()
    assert found.passed_over == {"linked again": 4, "broken link": 1}
    # A glob leads to the same files by many ways, too.
    assert sorted(read(folder / "**")) == sorted(read(folder))


@pytest.mark.parametrize("name", ["texts", "texts/b", "texts/b/c.txt"])
def test_what_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch, name):
    folder = write(tmp_path / "texts", "a.txt", "b/c.txt")
    closed = str(tmp_path / name)

    def barred(function):
        def call(path, *rest, **named):
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", closed)
            return function(path, *rest, **named)

        return call

    # As root, who runs the tests in many a container, chmod closes nothing.
    monkeypatch.setattr(os, "listdir", barred(os.listdir))
    monkeypatch.setattr("llm.data.checksums.sha256", barred(lambda file: "00"))
    with pytest.raises(Refused, match=f"{closed} cannot be read .Permission denied.; make it rea"):
        custom(folder).describe()


def test_hidden_text_is_read_where_it_is_named(tmp_path):
    write(tmp_path, ".hidden/a.txt", ".hidden/.b.txt", "c.txt")
    assert "".join(read(tmp_path / ".hidden")) == "text of .hidden/a.txt"
    assert "".join(read(tmp_path / ".hidden" / ".b.txt")) == "text of .hidden/.b.txt"
    assert read(tmp_path / ".*" / "*.txt") == read(tmp_path / ".hidden")


def test_other_kinds_are_read_by_wish(tmp_path):
    write(tmp_path, "a.py", "b/c.RS", "d.txt", "README.md", "LICENSE")
    assert read(tmp_path, suffixes=[".py", "rs"]) == ["text of a.py", "text of b/c.RS"]
    assert read(tmp_path, suffixes=[".txt", ""]) == ["text of LICENSE", "text of d.txt"]
    assert custom(tmp_path, suffixes=["py"]).found().passed_over == {
        ".md": 1, ".rs": 1, ".txt": 1, "no suffix": 1,
    }  # fmt: skip
    with pytest.raises(
        Refused, match=r"no text found: .*a\.py; it reads .*data\.suffixes=\[\.py\]"
    ):
        read(tmp_path / "a.py")
