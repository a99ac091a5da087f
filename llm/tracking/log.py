"""The metric log: one JSON object a line, the truth about a run.

`metrics.jsonl` holds what a seed determines, so that a run that was killed and resumed ends with
the same bytes as one left alone; `perf.jsonl` holds what a clock determines. Keeping them apart
is what makes the first comparable byte by byte.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm.config.errors import Failed


class MetricLog:
    """Appends to `folder/metrics.jsonl`; the folder must exist.

    A line is `{"step": 100, "tokens": 204800, "train/loss": 3.25, …}`. Numbers are written in
    their shortest form that reads back exactly; NaN and infinities, for which JSON has no word,
    become null. A tear left by a crash in the middle of a line is cut off on opening.
    """

    filename = "metrics.jsonl"

    def __init__(self, folder: Path):
        self.path = Path(folder) / self.filename
        self._file = open(self.path, "ab")  # noqa: SIM115 (open as long as the run)
        whole = _end_of_last_line(self.path)
        if whole < self._file.tell():
            self._file.truncate(whole)

    def append(self, step: int, tokens: int, metrics: Mapping[str, Any]) -> None:
        """Write one line and hand it to the system, so that only a power cut can lose it.

        `metrics`: flat names to numbers, strings, or (nested) lists of them; arrays and tensors
        are taken as lists. Raises ValueError for the names `step` and `tokens`, TypeError for
        anything that is none of these. Nothing is written if it raises.
        """
        if "step" in metrics or "tokens" in metrics:
            raise ValueError("step and tokens are arguments of their own, not metrics")
        row = {"step": int(step), "tokens": int(tokens)}
        row.update((name, _plain(value)) for name, value in metrics.items())
        line = json.dumps(row, allow_nan=False, ensure_ascii=False, separators=(", ", ": "))
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Make every line survive a power cut; returns the file's size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut_back(self, size: int) -> None:
        """Forget everything behind byte `size`, which `sync` gave when the checkpoint was made.

        Raises Failed where the file is shorter, or has no line ending there: then the log is
        not the one that the checkpoint belongs to.
        """
        self._file.flush()
        with open(self.path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            at_line_end = size == 0 or file.read(1) == b"\n"
        if length < size or not at_line_end:
            raise Failed(
                f"{self.path} was altered after the checkpoint: {length} bytes, where the "
                f"checkpoint ends a line at byte {size}; restore it or start a new run"
            )
        self._file.truncate(size)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which `append` has told
            self._file.close()

    @staticmethod
    def read(path: Path, holding: bytes = b"") -> list[dict[str, Any]]:
        """Every whole line of a log that holds these bytes, oldest first; none without a log."""
        return parse(path.read_bytes(), path, holding) if path.exists() else []


class PerfLog(MetricLog):
    """Appends to `folder/perf.jsonl`: seconds, tokens a second, memory. Never cut back, since
    time spent on steps that were lost was spent all the same."""

    filename = "perf.jsonl"

    def cut_back(self, size: int) -> None:
        raise TypeError("perf.jsonl is never cut back")


def parse(
    text: bytes, path: Path, holding: bytes = b"", keys: Sequence[str] = ("step", "tokens")
) -> list[dict[str, Any]]:
    """The rows of `text`, a log's bytes up to wherever its writer is just now.

    Damaged lines are passed over, and that is said once for each log; a torn last line is no line
    yet. Only lines that hold the bytes `holding` are looked at: a row in a hundred, perhaps.

    Args:
        keys: that every row has, whole numbers
    """
    rows, damaged = [], 0
    for line in text.split(b"\n")[:-1]:
        if holding not in line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and all(isinstance(row.get(key), int) for key in keys):
            rows.append(row)
        else:
            damaged += 1
    if damaged:
        _tell(path, f"{path}: passing over {damaged} damaged line{'s' * (damaged > 1)}")
    return rows


_told: set[Path] = set()


def _tell(path: Path, line: str) -> None:
    if path not in _told:
        _told.add(path)
        print(line, file=sys.stderr)


def _end_of_last_line(path: Path) -> int:
    """The byte behind the last newline, read backwards in blocks: logs can be long."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 65536, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch, scalars included, without importing either
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TypeError(f"a metric is a number, a string or a list of them, not {type(value).__name__}")
