"""The runs as a table that fits the terminal."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from llm.runs.conditions import COLUMNS
from llm.runs.labels import flat, labels
from llm.runs.listing import Listed
from llm.tracking.progress import brief, clock

#: Columns that a narrow terminal does without, the first to go first.
_DISPENSABLE = ("sweeps", "total", "excess", "active", "tokens", "time")
_RIGHT = {"val/loss", "excess", "active", "total", "tokens", "time"}
#: Letters that the last column keeps.
_LEAST = 16
#: Nodes of a config that tell runs apart and change nothing.
_SILENT = {"outputs", "plugins", "run", "tracking", "hardware", "compare"}


def listing(runs: Sequence[Listed], asked: Sequence[str], sweeps: dict[str, list[str]]) -> str:
    """One line per run.

    Args:
        asked: keys of more columns
        sweeps: run id to the sweeps that list it
    """
    differs = labels([_content(run) for run in runs], [run.chosen for run in runs])
    columns: dict[str, list[str]] = {"run": [run.id for run in runs]}
    columns["state"] = [run.state for run in runs]
    columns["date"] = [_date(run.written) for run in runs]
    for name, form in _FIGURES.items():
        columns[name] = [_figure(run.facts.get(COLUMNS.get(name, name)), form) for run in runs]
    for key in asked:
        columns.setdefault(key, [str(run.values.get(key)) for run in runs])
    columns["tags"] = [" ".join(run.tags) for run in runs]
    columns["sweeps"] = [" ".join(sweeps.get(run.id, [])) for run in runs]
    columns["differs in"] = differs
    columns = {name: cells for name, cells in columns.items() if name == "run" or any(cells)}
    return "\n".join(_fitting(columns, _width()))


def _content(run: Listed) -> dict[str, Any]:
    row = {k: v for k, v in run.config.items() if k.split(".")[0] not in _SILENT}
    machine = {f"hardware.{key}": run.facts.get(key) for key in ("device", "precision")}
    return flat({**row, **machine, "data_fingerprint": run.facts.get("data_fingerprint")})


def _fitting(columns: dict[str, list[str]], width: int | None) -> list[str]:
    """The lines, without what a terminal of this width has no room for."""
    rest = dict(columns)
    for name in _DISPENSABLE:
        if width is not None and _wide(rest) > width:
            rest.pop(name, None)
    if width is not None and "differs in" in rest:
        last = rest.pop("differs in")
        room = max(width - _wide(rest) - 2, _LEAST)
        rest["differs in"] = [c if len(c) <= room else f"{c[: room - 1]}…" for c in last]
    return aligned([list(rest), *map(list, zip(*rest.values(), strict=True))], _RIGHT)


def aligned(rows: list[list[str]], right: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """Rows as lines of columns, the first as their heads; those named in `right` at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if head in right else cell.ljust(width)
            for head, cell, width in zip(rows[0], row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _wide(columns: dict[str, list[str]]) -> int:
    return sum(2 + max(map(len, [name, *cells])) for name, cells in columns.items()) - 2


def _width() -> int | None:
    """Of the terminal; None where the table goes elsewhere, whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _date(seconds: float) -> str:
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%m-%d %H:%M" if then.tm_year == now.tm_year else "%Y-%m-%d", then)


def _figure(value: Any, form: Any) -> str:
    return form(value) if isinstance(value, int | float) else ""


_FIGURES: dict[str, Any] = {
    "val/loss": "{:.4f}".format,
    "excess": "{:.4f}".format,
    "active": brief,
    "total": brief,
    "tokens": brief,
    "time": clock,
}
