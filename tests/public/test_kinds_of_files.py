"""The usual shapes of text are read as independent readers read them, and others refused by name.

Before, there were no nested columns, no CSV but with commas, no .tsv, no JSON array, no bz2 or
xz and no string views of parquet.
"""

import bz2
import csv
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.config.errors import Refused
from llm.data.custom import Custom
from llm.data.hub import Hub

ROWS = [
    {"id": 1, "text": "one", "meta": {"body": "eins", "of": {"what": "a; b"}}},
    {"id": 2, "text": 'two, "quoted"\nlines\t', "meta": {"body": None, "of": {"what": "c"}}},
    {"id": 3, "text": "", "meta": None},
    {"id": 4, "text": "four\\ \u2028 😀", "meta": {"body": "[vier]", "of": {"what": "|"}}},
]
NESTED = {"meta.body": ["eins", "[vier]"], "meta.of.what": ["a; b", "c", "|"]}
TEXTS = [row["text"] for row in ROWS if row["text"]]


def custom(path, **options) -> Custom:
    return Custom(**{"path": str(path), "text_column": "text", "val_fraction": 0.5, **options})


def read(path, **options) -> list[str]:
    return [stretch.text for stretch in custom(path, **options)._texts()]


@pytest.mark.parametrize("column", NESTED)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_nested_columns(tmp_path, kind, column):
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    else:
        lines = [json.dumps(row) for row in ROWS]
        file.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    assert read(file, text_column=column) == NESTED[column]
    with pytest.raises(Refused, match=r"'meta\.missing'.*meta\.body.*data\.text_column"):
        read(file, text_column="meta.missing")
    flat = {"meta.body": "the name itself", "meta": {"body": "no"}}
    pq.write_table(pa.Table.from_pylist([flat]), file) if kind == "parquet" else file.write_text(
        json.dumps(flat)
    )
    assert read(file, text_column="meta.body") == ["the name itself"]


def test_nested_columns_of_the_hub(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    corpus = Hub(repo=None, path=str(tmp_path), text_column="meta.of.what", val_fraction=0.5)
    assert sorted(d.text for d in corpus.documents()) == sorted(NESTED["meta.of.what"])
    assert corpus.account.left_out == {"empty": 1}
    with pytest.raises(Refused, match=r"column 'meta\.of' is no text"):
        list(Hub(repo=None, path=str(tmp_path), text_column="meta.of").documents())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_whatever_separates_their_fields(tmp_path, suffix, delimiter):
    file = tmp_path / f"a.{suffix}"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ["id", "a,b", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows({"id": row["id"], "a,b": "x;y|z\t", "text": row["text"]} for row in ROWS)
    with file.open(newline="", encoding="utf-8") as independent:
        expected = [row["text"] for row in csv.DictReader(independent, delimiter=delimiter)]
    assert read(file) == read(tmp_path) == [text for text in expected if text] == TEXTS
    with pytest.raises(
        Refused, match=r"line 1: has no column 'body'; it has id, a,b, text; data\."
    ):
        read(file, text_column="body")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_that_is_one_array(tmp_path, indent):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(ROWS, indent=indent))
    assert read(file) == TEXTS
    assert read(tmp_path, suffixes=[".json"]) == TEXTS
    with pytest.raises(Refused, match=r"no text found: .*data\.suffixes=\[\.json\]"):
        read(tmp_path)  # settings.json lies in many a folder of texts
    file.rename(tmp_path / "a.jsonl")
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a"},\n {"text": "b"', "ends in the middle"),
        ('[{"text": "a"},\n', "ends in the middle"),
        ('[{"text": "a"},\n]', r"line 2: is no JSON object"),
        ('[{"text": "a"}\n\n {"text": "b"}]', r"line 1: is no JSON object"),
        ('[{"text": "a"}]\n[1]', r"goes on behind its array"),
        ('[{"text": "a"},\n\n {"body": "b"}]', r"line 3: is no JSON object .* \(it has body\)"),
        ('{"text": "a"}\n["text"]', r"line 2: is no JSON object"),
    ],
)
def test_a_broken_array_is_refused(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(Refused, match=rf"a\.json.*{said}"):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(" [ ] ")
    assert read(tmp_path / "a.json") == []


@pytest.mark.parametrize(("suffix", "module"), [("bz2", bz2), ("xz", lzma)])
def test_bz2_and_xz(tmp_path, suffix, module):
    plain = "some text of several words\n" * 999
    file = tmp_path / f"a.txt.{suffix}"
    file.write_bytes(module.compress(plain.encode()))
    assert "".join(read(tmp_path)) == plain
    for damaged in (file.read_bytes()[:-20], b"nonsense"):
        file.write_bytes(damaged)
        with pytest.raises(Refused, match=rf"a\.txt\.{suffix}: is damaged, copy it again"):
            read(tmp_path)


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_of_parquet(tmp_path, kind):
    values = pa.array(["one", None, "née " * 9, "", "one"]).cast(kind)
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert read(tmp_path) == pq.read_table(tmp_path / "a.parquet")["text"].to_pylist()[::2]
