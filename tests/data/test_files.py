"""Every kind of file, packed and not, with all that can be wrong with it."""

import csv
import gzip
import io
import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config.errors import Refused
from llm.data import texts as texts_room
from llm.data.custom import Custom
from llm.data.duplicates import Copies
from llm.data.texts import SEPARATOR, Stretch, separated, whole
from llm.tokenizer.gpt2 import GPT2
from tests.documents import whole_documents

TEXTS = ["one", "née\nétoile", 'with "quotes", commas', "four\u2028and a half", "five"]


def custom(path, **options) -> Custom:
    return Custom(**{"path": str(path), "text_column": "text", "val_fraction": 0.25, **options})


def read(path, **options) -> list[str]:
    return whole_documents(custom(path, **options))


def as_csv(texts) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    return out.getvalue().encode()


def as_parquet(texts) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), out, row_group_size=2)
    return out.getvalue()


KINDS = {
    "txt": lambda texts: SEPARATOR.join(texts).encode(),
    "md": lambda texts: SEPARATOR.join(texts).encode(),
    "jsonl": lambda texts: "".join(json.dumps({"text": t}) + "\n" for t in texts).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}
#: The same bytes at any time: a file's header holds the clock.
gzipped = partial(gzip.compress, mtime=0)
PACKERS = {"": bytes, ".gz": gzipped, ".zst": zstandard.compress}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_brings_the_same_documents(tmp_path, kind, packed):
    file = tmp_path / f"a.{kind}{packed}"
    file.write_bytes(PACKERS[packed](KINDS[kind](TEXTS)))
    assert read(file) == TEXTS
    assert read(tmp_path) == TEXTS  # found in a folder, too


def test_globs_find_files_and_folders(tmp_path):
    for name in ("a/x.txt", "a/y.md", "b/x.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    assert read(tmp_path / "**" / "x.txt") == ["text of a/x.txt", "text of b/x.txt"]
    assert read(tmp_path / "[ac]*") == ["text of a/x.txt", "text of a/y.md", "text of c.txt"]
    with pytest.raises(Refused, match="there is no "):
        custom(tmp_path / "*.html")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"id,body\n1,x\n", r"a\.csv, line 1: has no column 'text'; it has id, body"),
        ("a.csv", b"", r"a\.csv, line 1: has no column 'text'; it has none"),
        ("a.csv", b'id,text\n1,x\n2,"y\nz"\n3\n', r"a\.csv, line 5: has 1 fields, and .* 2"),
        ("a.csv", b'text\n"x" y\n', r"a\.csv, line 2: is no CSV"),
        ("a.parquet", b"nonsense", r"a\.parquet: is no parquet"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"a\.jsonl, line 1: .*it has body, id.*text_col"),
        ("a.txt.gz", gzipped(b"x" * 9999)[:-9], r"a\.txt\.gz: is damaged"),
        ("a.txt.gz", b"nonsense", r"a\.txt\.gz: is damaged"),
        ("a.txt.zst", zstandard.compress(b"x" * 9999)[:-1], r"a\.txt\.zst: is damaged.*middle"),
        ("a.txt.zst", b"nonsense", r"a\.txt\.zst: is damaged"),
        ("a.jsonl.gz", gzipped(b'{"text": "x"}\n{"text": "\xff"}\n'), "line 2: is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=said) as refusal:
        read(tmp_path)
    assert str(refusal.value).startswith("data.path: ") and "\n" not in str(refusal.value)


def test_parquet_columns(tmp_path):
    table = {"body": pa.array(["x", None, "y"]).dictionary_encode(), "id": [1, 2, 3]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read(tmp_path, text_column="body") == ["x", "y"]
    with pytest.raises(Refused, match=r"has no column 'text'; it has body, id; data\.text_column"):
        read(tmp_path)
    with pytest.raises(Refused, match="column 'id' holds int64, no text"):
        read(tmp_path, text_column="id")


def test_bytes_that_are_no_utf8_are_replaced_on_request_and_counted(tmp_path):
    bad = pa.array([b"fine", b"b\xffd"]).cast(pa.binary())
    unchecked = pa.StringArray.from_buffers(2, *bad.buffers()[1:])
    pq.write_table(pa.table({"text": unchecked}), tmp_path / "c.parquet")
    (tmp_path / "a.txt").write_bytes(b"fine\n" * 300_000 + b"b\xe4d \xff")  # beyond one block
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "\xc3"}\n{"text": "\xc3\xa4"}\n')
    with pytest.raises(Refused, match=r"a\.txt, line 300001: .*on_encoding_error=replace"):
        read(tmp_path)
    with pytest.raises(Refused, match=r"c\.parquet: holds text that is not UTF-8"):
        read(tmp_path / "c.parquet")
    corpus = custom(tmp_path, on_encoding_error="replace")
    found = [document.text for document in corpus.documents()]
    assert "".join(found[:-4]).endswith("fine\nb\ufffdd \ufffd")
    assert found[-4:] == ["\ufffd", "ä", "fine", "b\ufffdd"]
    assert corpus.account.left_out == {"replaced": 4}


def test_windows_line_ends_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("llm.data.files._BLOCK", 3)
    (tmp_path / "a.txt").write_bytes("\ufeffä\r\nb\r\n\r\nc\rd".encode())
    assert "".join(read(tmp_path)) == "ä\nb\n\nc\nd"


# Long documents

WORDS = st.lists(st.sampled_from(["a", " b", "\n", "  ", " ccc", SEPARATOR, "\n\n"]), max_size=60)


@given(WORDS, st.lists(st.integers(1, 9), min_size=1), st.integers(4, 12))
@settings(max_examples=80)
def test_stretches_do_not_depend_on_how_the_text_arrives(words, sizes, length):
    text, chunks, at = "".join(words), [], 0
    while at < len(text):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(text[at : at + size])
        at += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_room, "STRETCH", length)
        patch.setattr(texts_room, "LONGEST", 4 * length)
        found = list(separated(chunks))
        documents = [list(whole(part)) for part in text.split(SEPARATOR)]
    joined = "".join(s.text + ("" if s.more else SEPARATOR) for s in found)
    assert joined == text + SEPARATOR
    assert [s for document in documents for s in document if s.text] == [s for s in found if s.text]
    assert all(len(stretch.text) <= 4 * length for stretch in found if stretch.more)


def test_cuts_are_where_no_tokenizer_notices(monkeypatch):
    monkeypatch.setattr(texts_room, "STRETCH", 50)
    text = "It's  3.14 times\n\n  as long, he'd said...\tand\u00a0so on; " * 40
    parts = [stretch.text for stretch in whole(text)]
    assert len(parts) > 20
    encoded = [token for part in parts for token in GPT2().encode(part)]
    assert encoded == GPT2().encode(text)


def test_one_long_document_is_never_whole_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(texts_room, "STRETCH", 1000)
    text = "".join(f"sentence number {i} of a long book. " for i in range(5000))
    (tmp_path / "a.txt").write_text(text)
    documents = list(custom(tmp_path, val_fraction=0.1).documents())
    assert max(len(document.text) for document in documents) < 1100
    sides = {s: "".join(d.text for d in documents if d.split == s) for s in ("train", "val")}
    cut = int(len(text) * 0.9)
    assert sides == {"train": text[:cut], "val": text[cut:]}
    # each side is one document
    assert [d.split for d in documents if not d.more] == ["train", "val"]


# Copies


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.integers(1, 4))
@settings(max_examples=50)
def test_copies_are_the_later_ones(names, length):
    texts = [name * length for name in names]
    stretches = [Stretch(text) for text in texts]
    copies = Copies(stretches)
    kept = [stretch.text for stretch in copies.dropped_from(stretches)]
    assert kept == list(dict.fromkeys(texts))
    assert copies.count == len(texts) - len(kept)


def test_copies_of_long_documents_and_across_files(tmp_path, monkeypatch):
    monkeypatch.setattr(texts_room, "STRETCH", 100)
    long = "many words " * 50
    almost = long + "more"
    (tmp_path / "a.txt").write_text(SEPARATOR.join(["x", long, almost, "y", long]))
    (tmp_path / "b.jsonl").write_bytes(KINDS["jsonl"](["y", "z", almost]))
    corpus = custom(tmp_path, drop_duplicates=True)
    assert whole_documents(corpus) == ["x", long, almost, "y", "z"]
    assert corpus.account.left_out == {"duplicates": 3}
    assert custom(tmp_path).describe() != corpus.describe()
