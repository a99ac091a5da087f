"""Rows as Python's own readers find them, wherever chunks end and however long rows are."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import rows
from llm.data.encoding import Malformed
from llm.tokenizer.base import well_formed

FIELDS = st.text(st.sampled_from('aé"",;\n 😀\\'), max_size=8)
CUTS = st.tuples(st.integers(1, 9), st.sampled_from([3, 1000]))  # characters of a chunk, LONG


def chunks(text: str, size: int):
    return iter([text[i : i + size] for i in range(0, len(text), size)])


def ours(read, text: str, cuts: tuple[int, int], *rest) -> list[str] | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "LONG", cuts[1])
        try:
            return ["".join(parts) for parts in read(chunks(text, cuts[0]), *rest)]
        except Malformed:
            return None


def by_csv(text: str, delimiter: str) -> list[str] | None:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        found = [row for row in reader if row]
    except csv.Error:
        return None
    if "text" not in names or any(len(row) != len(names) for row in found):
        return None
    return [row[names.index("text")] for row in found]


@settings(max_examples=50)
@given(st.lists(st.lists(FIELDS, min_size=3, max_size=3), max_size=5), st.booleans(), CUTS)
def test_tables_that_python_writes(table, all_quoted, cuts):
    out = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=";", lineterminator="\n", quoting=quoting)
    writer.writerows([["id", "text", "a,b"], *table])
    assert ours(rows.csv_texts, out.getvalue(), cuts, "text", ",;") == [row[1] for row in table]


@settings(max_examples=50)
@given(st.sampled_from(["text\n", "id,text\n", '"text",b\n', ""]), st.lists(FIELDS), CUTS)
def test_tables_that_nobody_wrote(head, parts, cuts):
    text = head + "".join(parts)
    found, expected = ours(rows.csv_texts, text, cuts, "text", ","), by_csv(text, ",")
    # An empty line is a row without a field for Python, and an empty text here.
    assert (found and [t for t in found if t]) == (expected and [t for t in expected if t])


STRINGS = st.text(st.sampled_from('aé"\\\n\0{}[],:😀\ud83d\ude00\u2028'), max_size=14)
OBJECTS = st.fixed_dictionaries(
    {"text": STRINGS | st.none(), "meta": st.dictionaries(st.sampled_from("ab"), STRINGS)},
    optional={"other": st.recursive(STRINGS, st.lists, max_leaves=4)},
)


@settings(max_examples=50)
@given(st.lists(OBJECTS, max_size=4), st.sampled_from([None, 1]), st.sampled_from([12, 1000]), CUTS)
def test_json_in_lines_and_arrays(values, indent, long, cuts):
    expected = [well_formed(value["text"] or "") for value in values]
    lines = "".join(json.dumps(value) + "\n" for value in values)
    for text in (lines, json.dumps(values, indent=indent)):
        assert ours(rows.json_texts, text, (cuts[0], long), "text") == expected
