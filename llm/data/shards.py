"""Token files that grow document by document, and go on after a death at any moment.

    SPLIT.bin       ids, uint16 or uint32: end-of-text, document, end-of-text, …, and a last
                    end-of-text
    SPLIT.docs.npy  where each document's end-of-text stands in them, int64

A journal beside the folder says up to where the files are safe on disk, and how much of the corpus
that is. Whoever goes on cuts them back to there.
"""

import json
import os
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

FORMAT = 1


class Encoded(NamedTuple):
    """One `Document` as tokens."""

    split: str
    ids: np.ndarray
    n_bytes: int  # of its text in UTF-8
    more: bool  # the next one goes on with this text


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
        self._files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
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
        starts: dict[str, list[int]] = {}
        for split, ids, n_bytes, more in documents:
            if split not in self._files:
                self._open(split)
            counts, out = self.counts[split], tokens.setdefault(split, [])
            if not self._inside:
                starts.setdefault(split, []).append(counts["tokens"])
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
        for split, places in starts.items():
            self._files[split][1].write(np.array(places, "<i8").data)

    def commit(self, complete: bool = False, account: dict[str, Any] | None = None) -> None:
        """From here on, everything added so far survives."""
        self.complete, self.account = complete, account or {}
        for pair in self._files.values():
            for file in pair:
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
        for split, (tokens, starts) in self._files.items():
            tokens.write(self.eot.data)
            starts.seek(0)
            _write_header(starts, self.counts[split]["documents"])
            sync(tokens)
            sync(starts)
        self.close()
        return {
            split: {**counts, "tokens": counts["tokens"] + 1}
            for split, counts in self.counts.items()
        }

    def close(self) -> None:
        for pair in self._files.values():
            for file in pair:
                file.close()

    def _open(self, split: str) -> None:
        tokens, starts = (self.folder / name for name in files_of(split))
        if split not in self.counts:
            self.counts[split] = {"documents": 0, "tokens": 0, "bytes": 0}
            tokens.write_bytes(b"")
            with starts.open("wb") as empty:
                _write_header(empty, 0)
        counts = self.counts[split]
        pair = tokens.open("r+b"), starts.open("r+b")
        self._files[split] = pair
        for file, size in zip(pair, _sizes(counts, self.dtype.itemsize), strict=True):
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


def files_of(split: str) -> tuple[str, str]:
    """Names of a split's files: tokens, and where documents start in them."""
    return f"{split}.bin", f"{split}.docs.npy"


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


# NumPy leaves room in the header of an array for its length to grow in place.
_HEADER = 128


def _write_header(file: IO[bytes], length: int) -> None:
    npy.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (length,)})
    assert file.tell() == _HEADER


def _sizes(counts: dict[str, int], itemsize: int) -> tuple[int, int]:
    return counts["tokens"] * itemsize, _HEADER + 8 * counts["documents"]
