"""The documents in one file: .txt, .md, .jsonl, .csv, .parquet, and these as .gz or .zst.

What is wrong in a file is refused by its name and line. Nothing here holds more of a file than the
row or the stretch that it is at.
"""

import codecs
import csv
import gzip
import io
import json
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llm.config.errors import Refused
from llm.data.texts import Stretch, separated, whole
from llm.tokenizer.base import well_formed

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
PACKED = (".gz", ".zst")
_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 14  # zstd can make ten thousand times as much of it


def kind_of(file: Path) -> str | None:
    """The suffix that says how a file is read (".jsonl" of a.jsonl.gz), None where none does."""
    name = file.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


class TextFile:
    """One file of documents.

    Args:
        file: its path; the suffix says how it is read
        column: field of .jsonl, .csv and .parquet that holds the text
        replace: whether bytes that are no UTF-8 become U+FFFD, or are refused
        counts: where replaced places are counted, as "replaced"
    """

    def __init__(self, file: Path, column: str, replace: bool, counts: Counter[str]):
        self.file, self.column, self.replace, self.counts = file, column, replace, counts

    def stretches(self) -> Iterator[Stretch]:
        """Its documents, empty ones included."""
        kind = kind_of(self.file)
        if kind in (".txt", ".md"):
            return separated(self._chunks())
        read: Callable[[], Iterator[str]] = {
            ".jsonl": self._json_lines,
            ".csv": self._csv_rows,
            ".parquet": self._parquet_rows,
        }[str(kind)]
        return (stretch for text in read() for stretch in whole(well_formed(text)))

    def _refuse(self, what: str, line: int | None = None) -> Refused:
        where = f"{self.file}, line {line}" if line else f"{self.file}"
        return Refused(f"{where}: {what}", "data.path")

    def _no_column(self, columns: list[str], line: int | None = None) -> Refused:
        there = f"it has {', '.join(columns)}" if columns else "it has none"
        return self._refuse(f"has no column {self.column!r}; {there}; data.text_column=NAME", line)

    # Bytes and characters

    def _blocks(self) -> Iterator[bytes]:
        """The content, unpacked."""
        name = self.file.name.lower()
        try:
            if name.endswith(".zst"):
                yield from _unpacked_zstd(self.file)
                return
            with gzip.open(self.file) if name.endswith(".gz") else self.file.open("rb") as file:
                while block := file.read(_BLOCK):
                    yield block
        except (gzip.BadGzipFile, EOFError, zlib.error, _DamagedZstd) as error:
            raise self._refuse(f"is damaged, copy it again ({error})") from None

    def _chunks(self) -> Iterator[str]:
        """The content as text, without what Windows adds: a byte order mark, its ends of lines."""
        decoder = codecs.getincrementaldecoder("utf-8")(_COUNTED if self.replace else "strict")
        lines = io.IncrementalNewlineDecoder(decoder, translate=True)
        n_lines, first = 0, True
        for block in self._each_and_end():
            try:
                chunk = lines.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line = n_lines + error.object[: error.start].count(b"\n") + 1
                remedy = "data.on_encoding_error=replace goes on without what is wrong"
                raise self._refuse(f"is not UTF-8 ({error.reason}); {remedy}", line) from None
            n_lines += block.count(b"\n")
            self._count_replaced()
            if first and chunk:
                chunk, first = chunk.removeprefix("\ufeff"), False
            yield chunk

    def _each_and_end(self) -> Iterator[bytes]:
        yield from self._blocks()
        yield b""

    def _lines(self) -> Iterator[str]:
        """Each line with its end.

        Not splitlines(), which also cuts at U+2028 and U+0085: JSON strings may hold these.
        """
        begun: list[str] = []
        for chunk in self._chunks():
            *ended, rest = chunk.split("\n")
            for line in ended:
                begun.append(line)
                yield "".join(begun) + "\n"
                begun = []
            begun.append(rest)
        if last := "".join(begun):
            yield last

    # Rows

    def _json_lines(self) -> Iterator[str]:
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            value: Any = None
            try:
                value = json.loads(line)
                text = value[self.column]
                if not isinstance(text, str | None):
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError):
                problem = f"is no JSON object with a text in {self.column!r}"
                there = f" (it has {', '.join(map(str, value))})" if isinstance(value, dict) else ""
                raise self._refuse(
                    f"{problem}{there}; name its field: data.text_column", number
                ) from None
            yield text or ""

    def _csv_rows(self) -> Iterator[str]:
        csv.field_size_limit(2**31 - 1)  # else 131,072 characters
        rows = csv.reader(self._lines(), strict=True)
        try:
            columns = next(rows, [])
            if self.column not in columns:
                raise self._no_column(columns, 1)
            place = columns.index(self.column)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(columns):
                    problem = f"has {len(row)} fields, and the first line {len(columns)}"
                    raise self._refuse(problem, rows.line_num)
                yield row[place]
        except csv.Error as error:
            raise self._refuse(f"is no CSV ({error})", rows.line_num) from None

    def _parquet_rows(self) -> Iterator[str]:
        import pyarrow
        from pyarrow import parquet

        with tempfile.TemporaryFile() as unpacked:
            source: Path | IO[bytes] = self.file
            if self.file.name.lower().endswith(PACKED):  # it is read from its end on
                for block in self._blocks():
                    unpacked.write(block)
                source = unpacked
            try:
                with parquet.ParquetFile(source) as file:
                    if self.column not in file.schema_arrow.names:
                        raise self._no_column(file.schema_arrow.names)
                    for batch in file.iter_batches(256, columns=[self.column]):
                        yield from self._texts(batch.column(0))
            except pyarrow.ArrowException as error:
                raise self._refuse(f"is no parquet ({str(error).splitlines()[0]})") from None

    def _texts(self, column: "pyarrow.Array") -> list[str]:
        import pyarrow

        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_null)
        if not any(is_kind(column.type) for is_kind in kinds):
            raise self._refuse(f"column {self.column!r} holds {column.type}, no text")
        try:
            return [text or "" for text in column.to_pylist()]
        except UnicodeDecodeError:  # a writer that did not look
            if not self.replace:
                remedy = "data.on_encoding_error=replace goes on without what is wrong"
                raise self._refuse(f"holds text that is not UTF-8; {remedy}") from None
        raw = column.cast(pyarrow.large_binary()).to_pylist()
        texts = [(value or b"").decode("utf-8", _COUNTED) for value in raw]
        self._count_replaced()
        return texts

    def _count_replaced(self) -> None:
        if _replaced.count:
            self.counts["replaced"] += _replaced.count
            _replaced.count = 0


class _DamagedZstd(Exception):
    """Broken, or ended in the middle of a frame, which `zstandard` itself passes over."""


def _unpacked_zstd(file: Path) -> Iterator[bytes]:
    import zstandard

    with file.open("rb") as packed:
        frame = None
        try:
            while block := packed.read(_PACKED_BLOCK):
                while block:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    if content := frame.decompress(block):
                        yield content
                    block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        except zstandard.ZstdError as error:
            raise _DamagedZstd(str(error)) from None
        if frame is not None:
            raise _DamagedZstd("ended in the middle")


class _Replaced(threading.local):
    count = 0


# "replace" as Python has it, counting.
_COUNTED = "llm.data.files.replace"
_replaced = _Replaced()


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    _replaced.count += 1
    return codecs.replace_errors(error)


codecs.register_error(_COUNTED, _replace)
