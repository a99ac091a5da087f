"""Text is read in its own encoding, or refused with the way to name it; never as NULs.

Before, UTF-16 was refused with on_encoding_error=replace as the remedy, which trained on NULs.
"""

import codecs
import csv
import io
import json

import pytest

from llm.config.errors import Refused
from llm.data.custom import Custom
from llm.evaluate_run import _text

TEXT = "naïve café\n\nПривет, мир. 😀\nlast line"
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def custom(path, **options) -> Custom:
    return Custom(path=str(path), text_column="text", val_fraction=0.5, **options)


def read(path, **options) -> str:
    return "".join(document.text for document in custom(path, **options).documents())


def as_csv(text: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "text"], [1, text]])
    return out.getvalue()


KINDS = {
    "txt": str,
    "jsonl": lambda text: json.dumps({"text": text}, ensure_ascii=False),
    "csv": as_csv,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", MARKS)
def test_a_byte_order_mark_says_it(tmp_path, monkeypatch, encoding, kind):
    monkeypatch.setattr("llm.data.files._BLOCK", 5)  # characters lie across blocks
    file = tmp_path / f"a.{kind}"
    file.write_bytes(MARKS[encoding] + KINDS[kind](TEXT).encode(encoding))
    assert read(file) == TEXT
    assert read(file, encoding="latin-1") == TEXT  # the key is for files without a mark


@pytest.mark.parametrize("encoding", [e for e in MARKS if e != "utf-8"])
@pytest.mark.parametrize("text", [TEXT, "hi", "Ночь, улица, фонарь, аптека. " * 9])
@pytest.mark.parametrize("on_error", ["refuse", "replace"])
def test_wide_characters_without_a_mark_are_refused_with_the_way(
    tmp_path, encoding, text, on_error
):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    remedy = rf"a\.txt: is {encoding.upper()} without a byte order mark; data\.encoding={encoding}$"
    with pytest.raises(Refused, match=remedy):
        read(tmp_path, on_encoding_error=on_error)
    assert read(tmp_path, encoding=encoding) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "koi8-r"])
def test_an_encoding_can_be_named(tmp_path, encoding):
    text = (
        TEXT if encoding == "koi8-r" else "漢字かな" if encoding == "shift_jis" else "naïve café\n"
    )
    text = (
        text.replace("ï", "i").replace("é", "e").replace("😀", "") if encoding == "koi8-r" else text
    )
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(Refused, match=r"line 1|line 3") as refusal:
        read(tmp_path)
    assert "is not UTF-8" in str(refusal.value) and "data.encoding=" in str(refusal.value)
    assert read(tmp_path, encoding=encoding) == text


def test_what_another_encoding_cannot_decode_is_named_by_its_line_or_replaced(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nfine\n\x81\x20")
    with pytest.raises(Refused, match=r"a\.txt, line 3: is not CP1252"):
        read(tmp_path, encoding="cp1252")
    corpus = custom(tmp_path, encoding="cp1252", on_encoding_error="replace")
    assert "".join(d.text for d in corpus.documents()) == "fine\nfine\n\ufffd "
    assert corpus.account.left_out == {"replaced": 1}


def test_a_text_to_evaluate_is_read_alike(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"))
    assert _text(file) == TEXT
    for content, said in (
        (TEXT.encode("utf-16-le"), "is UTF-16-LE without"),
        (b"\xff", "is not U"),
    ):
        file.write_bytes(content)
        with pytest.raises(Refused, match=rf"--text: .*a\.txt {said}.*; write it as UTF-8"):
            _text(file)


def test_the_encoding_is_part_of_the_data_where_it_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9 and more")
    plain = custom(tmp_path).describe()
    assert "encoding" not in plain and custom(tmp_path, encoding="utf8").describe() == plain
    named = [custom(tmp_path, encoding=name).describe() for name in ("latin1", "ISO-8859-1")]
    assert named[0] == named[1] != plain
    for wrong in ("latin-99", "rot13", "base64", ""):
        with pytest.raises(Refused, match="no encoding that Python knows"):
            custom(tmp_path, encoding=wrong)
