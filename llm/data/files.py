"""The documents in one file: plain text, .jsonl, .json, .csv, .tsv, .parquet, and these packed.

What is wrong in a file is refused by its name and line. Nothing here holds more of a file than the
row or the stretch that it is at.
"""

import bz2
import gzip
import lzma
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llm.config.errors import Refused
from llm.data.encoding import REPLACE, Decoder, Malformed, characters
from llm.data.rows import LONG, csv_texts, json_texts, no_column
from llm.data.search import PACKED, kind_of
from llm.data.texts import Stretch, separated, whole

if TYPE_CHECKING:
    import pyarrow

#: What a folder is searched for where nothing is said: a .json file is more often a setting.
USUAL = (".txt", ".md", ".jsonl", ".csv", ".tsv", ".parquet")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 12  # zstd can make ten thousand times as much of it


class TextFile:
    """One file of documents.

    Args:
        file: its path; the suffix says how it is read, plain text where it says nothing
        column: field of a row that holds the text; `a.b` for the field b of a field a
        encoding: of what is neither .parquet nor begins with a byte order mark; None for UTF-8
        counts: where places that are replaced by U+FFFD are counted; None to refuse them
    """

    def __init__(self, file: Path, column: str, encoding: str | None, counts: Counter[str] | None):
        self.file, self.column, self.encoding, self.counts = file, column, encoding, counts

    def stretches(self) -> Iterator[Stretch]:
        """Its documents, empty ones included."""
        kind = kind_of(self.file)
        try:
            if kind == ".parquet":
                rows = self._parquet_texts()
            elif kind in (".jsonl", ".json"):
                rows = json_texts(self._characters(), self.column)
            elif kind in (".csv", ".tsv"):
                rows = csv_texts(
                    self._characters(), self.column, "\t,;|" if kind == ".tsv" else ",;\t|"
                )
            else:
                yield from separated(self._characters())
                return
            for chunks in rows:
                yield from whole(chunks)
        except Malformed as bad:
            where = f"{self.file}, line {bad.line}" if bad.line else f"{self.file}"
            raise Refused(f"{where}: {bad.problem}", "data.path") from None

    def _characters(self) -> Iterator[str]:
        return characters(self._blocks(), self.encoding, self.counts)

    def _blocks(self) -> Iterator[bytes]:
        """The content, unpacked."""
        suffix = self.file.suffix.lower()
        try:
            if suffix == ".zst":
                yield from _unpacked_zstd(self.file)
                return
            with _OPENERS.get(suffix, open)(self.file, "rb") as file:
                while block := file.read(_BLOCK):
                    yield block
        except (OSError, EOFError, zlib.error, lzma.LZMAError, _DamagedZstd) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the content
            raise Malformed(f"is damaged, copy it again ({error})") from None

    def _parquet_texts(self) -> Iterator[Iterable[str]]:
        import pyarrow
        from pyarrow import compute, parquet

        with tempfile.TemporaryFile() as unpacked:
            source: Path | IO[bytes] = self.file
            if self.file.name.lower().endswith(PACKED):  # it is read from its end on
                for block in self._blocks():
                    unpacked.write(block)
                source = unpacked
            try:
                # Else a column chunk is held whole beside what is decoded from it.
                buffered = {"pre_buffer": False, "buffer_size": _BLOCK}
                with parquet.ParquetFile(source, **buffered) as file:
                    leaves, inside = [leaf.path for leaf in file.schema], []
                    if self.column not in file.schema_arrow.names:
                        if self.column not in leaves:
                            raise Malformed(no_column(self.column, leaves))
                        inside = self.column.split(".")[1:]
                    for batch in file.iter_batches(_batch_of(file.metadata), columns=[self.column]):
                        array = batch.column(0)
                        yield from self._strings(
                            compute.struct_field(array, inside) if inside else array
                        )
            except pyarrow.ArrowException as error:
                raise Malformed(f"is no parquet ({str(error).splitlines()[0]})") from None

    def _strings(self, array: "pyarrow.Array") -> Iterator[Iterable[str]]:
        """Each value, decoded from where Arrow has it."""
        import pyarrow
        from pyarrow import types

        if types.is_dictionary(array.type):
            array = array.dictionary_decode()
        kinds = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        if not any(is_kind(array.type) for is_kind in kinds):
            raise Malformed(f"column {self.column!r} holds {array.type}, no text")
        array = array.cast(pyarrow.large_binary())
        _, ends, data = (memoryview(buffer or b"") for buffer in array.buffers())
        places = ends.cast("q")[array.offset : array.offset + len(array) + 1]
        for start, stop in pairwise(places):
            yield self._decoded(data[start:stop])

    def _decoded(self, data: memoryview) -> Iterator[str]:
        decoder = Decoder("utf-8", self.counts)
        try:
            for at in range(0, len(data), LONG):
                yield decoder.decode(data[at : at + LONG], final=at + LONG >= len(data))
        except UnicodeDecodeError:  # by a writer that did not look
            raise Malformed(f"holds text that is not UTF-8; {REPLACE}") from None


def _batch_of(metadata: Any) -> int:
    """Rows to decode at once: few where they are large."""
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return max(1, min(256, 16 * LONG * max(1, metadata.num_rows) // max(1, size)))


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
                    content = frame.decompress(block)
                    yield from (content[i : i + _BLOCK] for i in range(0, len(content), _BLOCK))
                    block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        except zstandard.ZstdError as error:
            raise _DamagedZstd(str(error)) from None
        if frame is not None:
            raise _DamagedZstd("ended in the middle")
