"""The table of differences that the tests against `transformers` leave behind."""

import pytest

COLUMNS = ("logits", "gradients", "cached", "round trip")
_ROWS: dict[str, dict[str, float]] = {}


@pytest.fixture
def record():
    """Note a difference for the table: record(name, column, value)."""

    def note(name: str, column: str, value: float) -> None:
        row = _ROWS.setdefault(name, {})
        row[column] = max(row.get(column, 0.0), value)

    return note


def pytest_terminal_summary(terminalreporter):
    if not _ROWS:
        return
    terminalreporter.section("largest difference from transformers, float32")
    width = max(map(len, _ROWS))
    terminalreporter.line(f"{'':{width}}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name, row in sorted(_ROWS.items()):
        cells = (f"{row[c]:12.1e}" if c in row else f"{'':12}" for c in COLUMNS)
        terminalreporter.line(f"{name:{width}}" + "".join(cells))
