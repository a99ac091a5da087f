"""A vocabulary may come from anybody: what `load` refuses."""

import json
import sys

import pytest

from llm.config.errors import Refused
from llm.tokenizer.base import load, save
from llm.tokenizer.byte_pairs import PATTERN
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.words import Words


def write(folder, **content):
    whole = {"format": 1, "class": "llm.tokenizer.bytes.Bytes", "state": {}} | content
    (folder / "vocabulary.json").write_text(json.dumps(whole))
    return folder


def refusal(folder, **options):
    with pytest.raises(Refused) as caught:
        load(folder, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "foreign_words.Mine",
        "llmx.tokenizer.Mine",
        "llm.tokenizer",  # not inside the room
        "llm.train.Loop",
        7,
    ],
)
def test_foreign_class_is_refused_unimported(tmp_path, monkeypatch, path):
    (tmp_path / "foreign_words.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "plugins" in refusal(write(tmp_path, **{"class": path}))
    assert "foreign_words" not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        "llm.tokenizer.base.Path",  # imported there, not defined there
        "llm.tokenizer.words.Counter",
        "llm.tokenizer.base.save",
        "llm.tokenizer.base.Tokenizer",
        "llm.tokenizer.stream.StreamDecoder",
        "llm.tokenizer.nowhere.Mine",
        "llm.tokenizer.bytes.Bytez",
        "llm.tokenizer..Bytes",
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, path):
    assert path in refusal(write(tmp_path, **{"class": path}))


def test_a_plugin_named_at_the_command_line_loads(tmp_path, monkeypatch):
    (tmp_path / "my_words.py").write_text(
        "from llm.tokenizer.bytes import Bytes\nclass Mine(Bytes):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = write(tmp_path, **{"class": "my_words.Mine"})
    assert "my_words.Mine" in refusal(folder)
    assert "my_words.Mine" in refusal(folder, plugins=["my_wor"])
    assert type(load(folder, plugins=["my_words"])).__name__ == "Mine"
    imported = write(tmp_path, **{"class": "my_words.Bytes"})  # not what that module defines
    assert "no tokenizer" in refusal(imported, plugins=["my_words"])
    monkeypatch.delitem(sys.modules, "my_words")


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"format": 1}'])
def test_a_torn_file_is_refused(tmp_path, content):
    (tmp_path / "vocabulary.json").write_text(content)
    assert "is not a vocabulary" in refusal(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path)


def test_another_format_is_refused_by_name(tmp_path):
    assert "format 2" in refusal(write(tmp_path, format=2))


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("chars.Chars", {}),
        ("chars.Chars", {"characters": "ba"}),
        ("chars.Chars", {"characters": "aa"}),
        ("chars.Chars", {"characters": "\ud800"}),
        ("chars.Chars", []),
        ("words.Words", {}),
        ("words.Words", {"cut_by": None, "pieces": []}),
        ("gpt2.GPT2", {"merges_sha256": "0"}),
        ("bpe.BPE", {}),
        ("bpe.BPE", {"cut_by": "(a+)+$", "pieces": []}),
        ("bpe.BPE", {"cut_by": PATTERN, "pieces": ["ab", "ab"]}),
        ("bpe.BPE", {"cut_by": PATTERN, "pieces": [""]}),
        ("bpe.BPE", {"cut_by": PATTERN, "pieces": ["\u0100"]}),
        ("bpe.BPE", {"cut_by": PATTERN, "pieces": "ab"}),
    ],
)
def test_a_wrong_state_is_refused(tmp_path, kind, state):
    refusal(write(tmp_path, **{"class": f"llm.tokenizer.{kind}", "state": state}))


@pytest.mark.parametrize("pieces", [["two words"], ["ab", "ab"], [1], "ab", None])
def test_wrong_pieces_are_refused(tmp_path, pieces):
    words = Words()
    words.fit([], ["ab"])
    save(words, tmp_path)
    state = words.state() | {"pieces": pieces}
    refusal(write(tmp_path, **{"class": "llm.tokenizer.words.Words", "state": state}))


def test_words_cut_by_another_pattern_are_refused(tmp_path):
    state = {"cut_by": "(a+)+$", "pieces": []}
    line = refusal(write(tmp_path, **{"class": "llm.tokenizer.words.Words", "state": state}))
    assert "prepare the data again" in line


def test_saving_again_replaces(tmp_path):
    words = Words()
    words.fit(["a cat"], None)
    save(words, tmp_path)
    save(Bytes(), tmp_path)
    assert type(load(tmp_path)) is Bytes
