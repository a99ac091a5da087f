"""The table of differences from `transformers` at the end of the tests.

Tests leave their figures in `user_properties`, which reach the reporting process from every worker.
"""

from typing import Any

import pytest

KEY = "parity"
COLUMNS = ("logits", "gradients", "cached", "round trip")
_ROWS: dict[str, dict[str, float]] = {}


def note(request: pytest.FixtureRequest, name: str, column: str, value: float) -> None:
    """Put a difference into the table, under the name of what was compared."""
    request.node.user_properties.append((KEY, (name, column, value)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call":
        return
    for key, value in report.user_properties:
        if key == KEY:
            name, column, difference = value
            row = _ROWS.setdefault(name, {})
            row[column] = max(row.get(column, 0.0), difference)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _ROWS:
        return
    terminalreporter.section("largest difference from transformers, float32")
    width = max(map(len, _ROWS))
    terminalreporter.line(f"{'':{width}}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name, row in sorted(_ROWS.items()):
        cells = (f"{row[c]:12.1e}" if c in row else f"{'':12}" for c in COLUMNS)
        terminalreporter.line(f"{name:{width}}" + "".join(cells))
