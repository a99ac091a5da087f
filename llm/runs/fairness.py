"""Whether a comparison compares one thing: what differs beside the factors that are named.

Arms are groups of jobs or runs that differ in their seed only.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llm.config.choices import leaves

#: Factors that make losses a different question, not a different answer.
_DATA, _TOKENIZER = "data", "tokenizer"


@dataclass(frozen=True)
class Entry:
    """A job or a run: its config (what can change a result), and what it spends."""

    name: str  # of its arm, for people
    config: dict[str, Any]
    seed: int
    tokens: float | None = None
    flops: float | None = None  # of the whole training
    params_active: float | None = None
    params_total: float | None = None


@dataclass(frozen=True)
class Arm:
    """Entries that are equal but for the seed; `settings` are its values of what differs."""

    settings: dict[str, Any]
    entries: list[Entry]

    @property
    def label(self) -> str:
        return self.entries[0].name or "all alike"


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys to values; lists are values."""
    return dict(leaves(config, ""))


def arms(entries: Sequence[Entry]) -> tuple[list[Arm], list[str]]:
    """The arms, and the dotted keys (other than the seed) that differ between them."""
    rows = [flat(entry.config) for entry in entries]
    keys = sorted({key for row in rows for key in row} - {"seed"})
    missing = object()
    differing = [k for k in keys if len({_hashable(row.get(k, missing)) for row in rows}) > 1]
    grouped: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        grouped[tuple(_hashable(row.get(k)) for k in differing)].append(i)
    found = []
    for indices in grouped.values():
        settings = {k: rows[indices[0]][k] for k in differing if k in rows[indices[0]]}
        found.append(Arm(settings, [entries[i] for i in indices]))
    return found, differing


def warnings(entries: Sequence[Entry], named: Iterable[str]) -> list[str]:
    """One line for each thing that makes the comparison less than fair.

    Args:
        named: keys and groups that the comparison is about (`moe`, `optimizer.lr`); what lies
            within a named group belongs to it
    """
    if len(entries) < 2:
        return []
    found, differing = arms(entries)
    if len(found) < 2:
        return []
    named = [name.replace("/", ".") for name in named]
    told = []
    beside = [key for key in differing if not any(_within(key, name) for name in named)]
    if named and beside:
        told.append(f"arms differ in more than the named factors: {_listed(beside)}")
    if any(_within(key, _DATA) for key in differing):
        told.append("arms learn from different data: their losses do not compare")
    elif any(_within(key, _TOKENIZER) for key in differing):
        told.append("arms have different tokenizers: compare val/bpb, not val/loss")
    told += _unequal(found, "tokens", "training tokens")
    told += _unequal(found, "flops", "active FLOPs of training")
    told += _unequal(found, "params_active", "active parameters")
    told += _seeds(found)
    return told


def _seeds(found: list[Arm]) -> list[str]:
    seeds = [sorted(entry.seed for entry in arm.entries) for arm in found]
    if all(len(of_arm) == 1 for of_arm in seeds):
        return ["one seed an arm: no difference between arms can be resolved"]
    if any(of_arm != seeds[0] for of_arm in seeds):
        return ["arms have different seeds: only those that both have are compared in pairs"]
    return []


def _unequal(found: list[Arm], name: str, words: str) -> list[str]:
    """A line where an amount differs by more than 5% between arms of one size."""
    sizes: dict[tuple[Any, ...], list[tuple[float, str]]] = defaultdict(list)
    for arm in found:
        value = getattr(arm.entries[0], name)
        if value and math.isfinite(value):
            size = tuple(_hashable(v) for k, v in arm.settings.items() if _within(k, "model"))
            sizes[size].append((value, arm.label))
    worst = max(sizes.values(), key=lambda known: max(known)[0] / min(known)[0], default=[])
    if not worst:
        return []
    low, high = min(worst), max(worst)
    ratio = high[0] / low[0]
    if ratio < 1.05:
        return []
    return [f"unequal {words}: {ratio:.2f} times as much with {high[1]} as with {low[1]}"]


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
