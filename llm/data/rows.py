"""The rows of .jsonl, .json and .csv files, each as the chunks of its text.

A row is held once, as UTF-8: a string may take four bytes a character, and a parser several of
them. A long text is decoded from it chunk by chunk.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from llm.data.encoding import Malformed
from llm.tokenizer.base import well_formed

#: Bytes above which a row, or a text in it, is long.
LONG = 1 << 20

#: A long row stays in the buffer that it is read into.
Row = bytearray | memoryview


class Span(NamedTuple):
    """Where a row stands in a buffer, and where to look for the next one."""

    start: int
    stop: int
    after: int


def column_of(row: Any, column: str) -> Any:
    """row[column], or what `a.b` leads to; null below null. Raises KeyError, TypeError."""
    if isinstance(row, dict) and column in row:
        return row[column]
    for key in column.split("."):
        row = None if row is None else row[key]
    return row


def _rows(
    chunks: Iterable[str], cut: Callable[[bytearray, int], Span | None]
) -> Iterator[tuple[int, Row]]:
    """Line and content of each row.

    Args:
        cut: finds the row of a buffer from a place on, None where its end is not there yet
    """
    buffer, line, enough = bytearray(), 1, 0
    for chunk in chain(filter(None, chunks), [""]):
        buffer += chunk.encode()
        if not chunk and buffer[-1:] not in (b"", b"\n"):
            buffer += b"\n"
        if chunk and len(buffer) < enough:
            continue
        at = 0
        try:
            while (span := cut(buffer, at)) is not None:
                line += buffer.count(b"\n", at, span.start)
                if span.stop - span.start <= LONG:
                    yield line, buffer[span.start : span.stop]
                else:
                    with memoryview(buffer)[span.start : span.stop] as row:
                        yield line, row
                line += buffer.count(b"\n", span.start, span.after)
                at = span.after
        except Malformed as bad:
            raise Malformed(bad.problem, line) from None
        del buffer[:at]
        # A long row is looked at again each time that it has grown by half, not for every chunk.
        enough = len(buffer) * 3 // 2
    if buffer.strip():
        raise Malformed("ends in the middle of a row", line)


# JSON

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{},"]', re.DOTALL)
_SPACE = re.compile(rb"\s*+")
_JSON_PARTS = re.compile(rb"(?:[^\\]{1,4096}+|\\u.{4}|\\.){1,256}+", re.DOTALL)


def json_texts(chunks: Iterator[str], column: str) -> Iterator[Iterable[str]]:
    """The text of each line, or of each element where all is one array."""
    first = next((chunk for chunk in chunks if chunk.strip()), "")
    if not first.lstrip().startswith("["):
        for line, row in _rows(chain([first], chunks), _line):
            if isinstance(row, memoryview) or row.strip():
                yield _json_text(row, column, line)
        return
    array = _Array()
    for line, row in _rows(chain([first.replace("[", " ", 1)], chunks), array.cut):
        if not (array.closed and array.length == 1 and not row):  # []
            yield _json_text(row, column, line)
    if not array.closed:
        raise Malformed("ends in the middle of its array")


def _line(buffer: bytearray, at: int) -> Span | None:
    end = buffer.find(b"\n", at)
    return None if end < 0 else Span(at, end, end + 1)


class _Array:
    """Cuts the content of an array into its elements."""

    length, closed = 0, False

    def cut(self, buffer: bytearray, at: int) -> Span | None:
        depth, begin = 0, _SPACE.match(buffer, at).end()  # type: ignore[union-attr]  # always matches
        if self.closed and begin < len(buffer):
            raise Malformed("goes on behind its array")
        for found in _MARK.finditer(buffer, begin):
            start, mark = found.start(), buffer[found.start()]
            if mark == ord('"'):
                if found.end() == start + 1:
                    return None  # its end is not there yet
            elif mark in b"[{":
                depth += 1
            elif depth:
                depth -= mark in b"]}"
            elif mark == ord("}"):
                raise Malformed("is no JSON")
            else:
                self.length, self.closed = self.length + 1, mark == ord("]")
                return Span(begin, start, start + 1)
        return None


def _json_text(row: Row, column: str, line: int) -> Iterable[str]:
    """The text of one row, whose long strings are set aside while the rest is parsed."""
    aside: list[tuple[int, int]] = []

    def number(literal: re.Match[bytes]) -> bytes:
        start, end = literal.span()
        if end - start <= LONG and not literal[0].startswith(rb'"\u0000'):
            return literal[0]
        aside.append((start + 1, end - 1))
        return rb'"\u0000%d"' % (len(aside) - 1)

    value: Any = None
    try:
        value = json.loads(_STRING.sub(number, row) if isinstance(row, memoryview) else row)
        text = column_of(value, column)
        if not isinstance(text, str | None):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        problem = f"is no JSON object with a text in {column!r}"
        there = f" (it has {', '.join(_names(value))})" if isinstance(value, dict) else ""
        raise Malformed(f"{problem}{there}; name its field: data.text_column", line) from None
    if not aside or not text or text[0] != "\0":
        return (well_formed(text or ""),)
    span = aside[int(text[1:])]
    return _decoded(row, span, _JSON_PARTS, lambda part: json.loads(f'"{part}"'), line)


def _names(row: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _names(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _decoded(
    row: Row,
    span: tuple[int, int],
    parts: re.Pattern[bytes],
    unescaped: Callable[[str], str],
    line: int,
) -> Iterator[str]:
    """A long text in a row, in parts that no escape lies across."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    half = ""  # of a surrogate pair
    for part in parts.finditer(row, *span):
        try:
            text = half + unescaped(decoder.decode(part[0]))
        except ValueError:
            raise Malformed("is no JSON", line) from None
        half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        yield well_formed(text.removesuffix(half))
    yield well_formed(half)


# CSV

_QUOTED_PARTS = re.compile(rb'(?:[^"]{1,4096}+|""){1,256}+')
_PARTS = re.compile(rb".{1,1048576}+", re.DOTALL)


def csv_texts(chunks: Iterator[str], column: str, delimiters: str) -> Iterator[Iterable[str]]:
    """The text of each row.

    Args:
        delimiters: to choose from; the first one counts with which the first line has the column
    """
    rows = _rows(chunks, _Table(column, delimiters).cut)
    if next(rows, None) is None:
        raise Malformed(no_column(column, []), 1)
    for line, row in rows:
        quoted = row[:1] == b'"'
        if isinstance(row, bytearray):
            text = row.decode()
            yield (_unquoted(text[1:-1]) if quoted else text,)
        elif quoted:
            yield _decoded(row, (1, len(row) - 1), _QUOTED_PARTS, _unquoted, line)
        else:
            yield _decoded(row, (0, len(row)), _PARTS, str, line)


def no_column(column: str, columns: list[str]) -> str:
    there = f"it has {', '.join(columns)}" if columns else "it has none"
    return f"has no column {column!r}; {there}; data.text_column=NAME"


def _unquoted(text: str) -> str:
    return text.replace('""', '"')


class _Table:
    """Cuts rows down to the field that is wanted, as `csv.reader(strict=True)` would find it."""

    def __init__(self, column: str, delimiters: str):
        self.column, self.delimiters = column, delimiters
        self.delimiter, self.n_columns = "", 0

    def cut(self, buffer: bytearray, at: int) -> Span | None:
        if not self.n_columns:
            return self._head(buffer, at)
        if found := self._wanted.match(buffer, at):
            return Span(*found.span(1), found.end())
        fields, end = _fields(buffer, at, self.delimiter)
        if end == len(buffer) or buffer[end] == ord('"'):
            return None  # its end is not there yet
        if buffer[end] != ord("\n"):
            raise Malformed(f"is no CSV ({self.delimiter!r} expected after '\"')")
        if end == at:
            return Span(at, at, at + 1)  # an empty line
        raise Malformed(f"has {len(fields)} fields, and the first line {self.n_columns}")

    def _head(self, buffer: bytearray, at: int) -> Span | None:
        """The first row, which says what separates fields and where the column is."""
        heads: dict[str, list[str]] = {}
        for delimiter in self.delimiters:
            fields, end = _fields(buffer, at, delimiter)
            if buffer[end : end + 1] == b"\n":
                names = [buffer[start:stop].decode() for start, stop in fields]
                heads[delimiter] = [_unquoted(n[1:-1]) if n[:1] == '"' else n for n in names]
        if not heads:
            return None
        fitting = [delimiter for delimiter, names in heads.items() if self.column in names]
        if not fitting:
            raise Malformed(no_column(self.column, max(heads.values(), key=len)))
        self.delimiter, names = fitting[0], heads[fitting[0]]
        self.n_columns, place = len(names), names.index(self.column)
        field, comma = _field(self.delimiter), re.escape(self.delimiter.encode())
        wanted = (field, comma, place, field, comma, field, len(names) - place - 1)
        self._wanted = re.compile(rb"(?:%b%b){%d}(%b)(?:%b%b){%d}\n" % wanted)
        _, end = _fields(buffer, at, self.delimiter)
        return Span(at, end, end + 1)


def _field(delimiter: str) -> bytes:
    """A pattern of one field, empty ones included."""
    other = b"[^%b\\n]" % re.escape(delimiter.encode())
    return rb'(?>"(?:[^"]++|"")*+"|(?!")%b*+)' % other


def _fields(buffer: bytearray, at: int, delimiter: str) -> tuple[list[tuple[int, int]], int]:
    """Where the fields of a row stand, and where that ends: at its end, if it is all there."""
    pattern, spans = re.compile(_field(delimiter)), []
    while found := pattern.match(buffer, at):
        spans.append(found.span())
        at = found.end()
        if buffer[at : at + 1] != delimiter.encode():
            break
        at += 1
    return spans, at
