"""Token files that grow document by document, and go on after a death at any moment.

    SPLIT.bin       ids, uint16 or uint32: end-of-text, document, end-of-text, …, and a last
                    end-of-text
    SPLIT.docs.npy  where each document's end-of-text stands in them, int64
    SPLIT.keys.npy  a hash of each document's text (llm/data/survey.py), uint64

A journal beside the folder says up to where the files are safe on disk, and how much of the corpus
that is. Whoever goes on cuts them back to there.
"""

import json
import os
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

FORMAT = 2


class Encoded(NamedTuple):
    """One `Document` as tokens."""

    split: str
    ids: np.ndarray
    n_bytes: int  # of its text in UTF-8
    more: bool  # the next one goes on with this text
    key: int  # of the text that it begins


class Shards:
    """The token files of a folder, being written.

    Args:
        folder: where they are; what is there is kept as far as `journal` vouches for it
        journal: file that says how far the work is safe
        splits: those that are there even without a document
    Attributes:
        done: how many `Document`s of the corpus are in the files
        complete: whether these are all
    """

    def __init__(
        self, folder: Path, journal: Path, dtype: np.dtype, eot: int, splits: tuple[str, ...]
    ):
        self.folder, self.journal = folder, journal
        self.dtype, self.eot = dtype, np.array([eot], dtype)
        self._files: dict[str, list[IO[bytes]]] = {}
        known = safe_state(folder, journal) or {}
        self.done: int = known.get("done", 0)
        self.complete: bool = known.get("complete", False)
        self._inside: bool = known.get("inside", False)
        self.counts: dict[str, dict[str, int]] = known.get("splits", {})
        self.account: dict[str, Any] = known.get("account", {})
        for split in list(self.counts) or splits:
            self._open(split)

    def add(self, documents: list[Encoded]) -> None:
        """Append documents, in the order of the corpus."""
        tokens: dict[str, list[np.ndarray]] = {}
        begun: dict[str, tuple[list[int], list[int]]] = {}  # starts and keys
        for split, ids, n_bytes, more, key in documents:
            if split not in self._files:
                self._open(split)
            counts, out = self.counts[split], tokens.setdefault(split, [])
            if not self._inside:
                starts, keys = begun.setdefault(split, ([], []))
                starts.append(counts["tokens"])
                keys.append(key)
                out.append(self.eot)
                counts["documents"] += 1
                counts["tokens"] += 1
            out.append(ids)
            counts["tokens"] += len(ids)
            counts["bytes"] += n_bytes
            self._inside = more
        self.done += len(documents)
        for split, arrays in tokens.items():
            self._files[split][0].write(np.concatenate(arrays, dtype=self.dtype).data)
        for split, columns in begun.items():
            for file, column, dtype in zip(self._files[split][1:], columns, _COLUMNS, strict=True):
                file.write(np.array(column, dtype).data)

    def commit(self, complete: bool = False, account: dict[str, Any] | None = None) -> None:
        """From here on, everything added so far survives."""
        self.complete, self.account = complete, account or {}
        for files in self._files.values():
            for file in files:
                sync(file)
        state = {
            "format": FORMAT,
            "done": self.done,
            "inside": self._inside,
            "complete": complete,
            "splits": self.counts,
            "account": self.account,
        }
        temporary = self.journal.with_name(f"{self.journal.name}.tmp")
        with temporary.open("wb") as file:
            file.write(json.dumps(state).encode())
            sync(file)
        os.replace(temporary, self.journal)

    def finish(self) -> dict[str, dict[str, int]]:
        """Put the last end-of-text and the number of documents in their places; the counts."""
        for split, (tokens, *columns) in self._files.items():
            tokens.write(self.eot.data)
            for column, dtype in zip(columns, _COLUMNS, strict=True):
                column.seek(0)
                _write_header(column, dtype, self.counts[split]["documents"])
            for file in self._files[split]:
                sync(file)
        self.close()
        return {
            split: {**counts, "tokens": counts["tokens"] + 1}
            for split, counts in self.counts.items()
        }

    def close(self) -> None:
        for files in self._files.values():
            for file in files:
                file.close()

    def _open(self, split: str) -> None:
        tokens, *columns = (self.folder / name for name in files_of(split))
        if split not in self.counts:
            self.counts[split] = {"documents": 0, "tokens": 0, "bytes": 0}
            tokens.write_bytes(b"")
            for column, dtype in zip(columns, _COLUMNS, strict=True):
                with column.open("wb") as empty:
                    _write_header(empty, dtype, 0)
        counts = self.counts[split]
        files: list[IO[bytes]] = [name.open("r+b") for name in (tokens, *columns)]
        self._files[split] = files
        for file, size in zip(files, _sizes(counts, self.dtype.itemsize), strict=True):
            file.truncate(size)
            file.seek(size)


def safe_state(folder: Path, journal: Path) -> dict[str, Any] | None:
    """What the journal says, None where there is none or where the files are not what it says."""
    try:
        state = json.loads(journal.read_text())
        if state["format"] != FORMAT:
            return None
        for split, counts in state["splits"].items():
            for name, size in zip(files_of(split), _sizes(counts, 1), strict=True):
                if (folder / name).stat().st_size < size:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state


def files_of(split: str) -> tuple[str, str, str]:
    """Names of a split's files: tokens, where documents start in them, and their keys."""
    return f"{split}.bin", f"{split}.docs.npy", f"{split}.keys.npy"


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


# NumPy leaves room in the header of an array for its length to grow in place.
_HEADER = 128
#: Of what is known of each document.
_COLUMNS = ("<i8", "<u8")


def _write_header(file: IO[bytes], dtype: str, length: int) -> None:
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    assert file.tell() == _HEADER


def _sizes(counts: dict[str, int], itemsize: int) -> tuple[int, int, int]:
    column = _HEADER + 8 * counts["documents"]
    return counts["tokens"] * itemsize, column, column
