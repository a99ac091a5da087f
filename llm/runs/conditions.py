"""What a listing asks for: `moe=dense`, `val_loss<1.2`, `tag=paper`, or a key to sort by.

A key that no run has, or a value near one that some run has, is a slip: Refused says what was
meant, where an empty or a full table would say nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from llm.config.choices import Choices
from llm.config.errors import Refused
from llm.config.suggest import did_you_mean, nearest
from llm.runs.listing import Listed

_CONDITION = re.compile(r"([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.*)")
#: What the table's columns are called, where that is not their key.
COLUMNS = {
    "run": "id",
    "date": "written",
    "val/loss": "val_loss",
    "active": "params_active",
    "total": "params_total",
    "time": "seconds",
}


@dataclass(frozen=True)
class Condition:
    """A key, whole as the runs have it, a sign, and what is wanted."""

    key: str
    sign: str
    wanted: str

    @classmethod
    def parse(cls, text: str, runs: Sequence[Listed]) -> "Condition":
        """Raises Refused where no run can be meant."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise Refused(f"{text}: is no condition; write KEY=VALUE, KEY<VALUE or KEY!=VALUE")
        found = cls(whole_key(match[1], runs, text), match[2], match[3])
        known = [value for run in runs if (value := run.values.get(found.key)) is not None]
        if found.sign not in ("=", "!="):
            if number(found.wanted) is None:
                raise Refused(f"{text}: {found.wanted!r} is not a number")
            if known and all(number(value) is None for value in known):
                raise Refused(f"{text}: {match[1]} is not a number in any run")
        elif number(found.wanted) is None:
            words = {str(v) for value in known for v in _items(value)}
            guess = None if found.wanted in words else nearest(found.wanted, sorted(words))
            if guess is not None and not any(_equal(value, found.wanted) for value in known):
                hint = f"did you mean {match[1]}{found.sign}{guess}?"
                raise Refused(f"{text}: no run has this value; {hint}")
        return found

    def holds(self, run: Listed) -> bool:
        value = run.values.get(self.key)
        if self.sign in ("=", "!="):
            return _equal(value, self.wanted) == (self.sign == "=")
        a, b = number(value), number(self.wanted)
        if a is None or b is None:
            return False
        return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[self.sign]


def whole_key(typed: str, runs: Sequence[Listed], text: str) -> str:
    """The key that `typed` names: whole, by its last parts, or by its column in the table.

    Args:
        text: what it was typed in, for the refusal
    """
    there = {key for run in runs for key in run.values}
    typed = COLUMNS.get(typed, typed)
    for known in (there, {*Choices().keys, *Choices().groups}):
        if typed in known:
            return typed
        ends = sorted(key for key in known if key.endswith(f".{typed}"))
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise Refused(f"{text}: is {' or '.join(ends)} meant?")
    if not runs:
        return typed
    hint = did_you_mean(typed, sorted({*there, *(key.rpartition(".")[2] for key in there)}))
    raise Refused(f"{text}: no run has the key {typed}{hint}")


def number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _equal(value: Any, wanted: str) -> bool:
    if isinstance(value, list):
        return wanted in map(str, value)
    a, b = number(value), number(wanted)
    return str(value) == wanted or (a is not None and a == b) or value == yaml.safe_load(wanted)
