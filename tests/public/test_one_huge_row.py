"""One huge row costs time in proportion to its size, and memory of a small multiple of it.

Before, a row of 200 MB of .jsonl took 1.2 GB and 79 s: it was held as several strings, and what was
left of it was copied for every megabyte.
"""

import csv
import io
import json
import time
import tracemalloc

import pytest

from llm.data import texts
from llm.data.custom import Custom
from llm.data.texts import Stretch, whole
from llm.tokenizer.words import Words, pieces_by_stretch

# An emoji, so that a string of the text takes four bytes a character; escapes of both formats.
TEXT = 'a "few" words, a tab\t and a bit more\n' * 150_000 + "\U0001f600"


def as_csv(text: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "text"], [1, text]])
    return out.getvalue()


KINDS = {
    "txt": str,
    "jsonl": lambda text: json.dumps({"text": text, "id": 1}, ensure_ascii=False),
    "json": lambda text: json.dumps([{"text": text, "id": 1}]),
    "csv": as_csv,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_held_less_than_three_times(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    file.write_text(KINDS[kind](TEXT), encoding="utf-8")
    corpus = Custom(path=str(file), text_column="text", val_fraction=0.1)
    length, more = 0, True
    tracemalloc.start()
    try:
        for stretch in corpus._texts():
            assert TEXT.startswith(stretch.text, length)
            length, more = length + len(stretch.text), stretch.more
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == len(TEXT) and not more
    assert peak < 3 * file.stat().st_size, peak / file.stat().st_size


def test_a_document_is_cut_in_time_linear_in_it(monkeypatch):
    monkeypatch.setattr(texts, "STRETCH", 100)

    def seconds(copies: int) -> float:
        text, began = "several words " * copies, time.process_time()
        assert sum(len(stretch.text) for stretch in whole([text])) == len(text)
        return time.process_time() - began

    seconds(1_000)
    assert seconds(200_000) < 40 * max(seconds(20_000), 1e-3)


def test_words_are_found_in_a_window_whatever_there_is_to_cut_at(monkeypatch):
    text = "不要空格，" * 50 + "it's" * 30 + "don't can't'x " + "word" * 40 + " 12 34'56"
    tokenizer = Words()
    tokenizer.fit([text], None)
    expected = tokenizer.encode(text)
    for length in range(1, 40):
        monkeypatch.setattr("llm.tokenizer.words.STRETCH", length)
        assert tokenizer.encode(text) == expected
        assert all(len(pieces) <= 4 * length + 6 for pieces in pieces_by_stretch(text))


def test_chunks_and_whole_texts_are_cut_alike(monkeypatch):
    monkeypatch.setattr(texts, "STRETCH", 7)
    monkeypatch.setattr(texts, "LONGEST", 20)
    text = "some words  and\n\nnowordswithoutanyspaceinthemforalongtime then\u00a0more of them "
    expected = list(whole([text]))
    assert "".join(stretch.text for stretch in expected) == text and len(expected) > 5
    for size in range(1, len(text)):
        assert list(whole(text[i : i + size] for i in range(0, len(text), size))) == expected
    assert list(whole([])) == list(whole([""])) == [Stretch("")]
