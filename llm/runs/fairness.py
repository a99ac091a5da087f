"""Whether a comparison compares one thing: what differs beside the factors that are named.

Arms are groups of jobs or runs that differ in their seed only.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llm.config.choices import leaves

#: What `compare` makes equal, and by which keys a dense partner differs (`llm.plan.partner`).
_EQUAL = {
    "active_flops": "active FLOPs a token",
    "total_params": "total parameters",
    "memory": "estimated memory",
    "time": "the time of a step",
}
_OF_PARTNERS = ("moe", "model.d_ff", "model.moe_every", "model.dense_first")
_AMOUNTS = {
    "tokens": "training tokens",
    "flops": "active FLOPs of training",
    "params_active": "active parameters",
    "params_total": "total parameters",
}
#: Factors that make losses a different question, not a different answer.
_DATA, _TOKENIZER = "data", "tokenizer"
_TOLERANCE = 1.05


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
    compare: str | None = None  # what a dense partner has equal with its model with experts


@dataclass(frozen=True)
class Arm:
    """Entries that are equal but for the seed; `settings` are its values of what differs."""

    settings: dict[str, Any]
    entries: list[Entry]

    @property
    def label(self) -> str:
        return self.entries[0].name or "all alike"

    @property
    def compare(self) -> str | None:
        return self.entries[0].compare

    @property
    def pair(self) -> frozenset[str]:
        return pair(self.entries[0].name)


def pair(name: str) -> frozenset[str]:
    """The words of an arm's name that its dense partner's name has, too."""
    return frozenset(word for word in name.split() if not word.startswith("compare="))


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys to values; lists are values, and an empty mapping holds none."""
    return {key: value for key, value in leaves(config, "") if value != {}}


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
    partners = [arm for arm in found if arm.compare]
    meant = [*named, *_OF_PARTNERS] if partners else named
    beside = [key for key in differing if not any(_within(key, name) for name in meant)]
    if named and beside:
        told.append(f"arms differ in more than the named factors: {_listed(beside)}")
    if any(_within(key, _DATA) for key in differing):
        told.append("arms learn from different data: their losses do not compare")
    elif any(_within(key, _TOKENIZER) for key in differing):
        told.append("arms have different tokenizers: compare val/bpb, not val/loss")
    others = [arm for arm in found if not arm.compare]
    for name in ("tokens", "flops", "params_active"):
        told += _unequal(others, name, _AMOUNTS[name])
    told += _intended(partners, others)
    told += _seeds(found)
    return told


def _seeds(found: list[Arm]) -> list[str]:
    seeds = [sorted(entry.seed for entry in arm.entries) for arm in found]
    if all(len(of_arm) == 1 for of_arm in seeds):
        return ["one seed an arm: no difference between arms can be resolved"]
    if any(of_arm != seeds[0] for of_arm in seeds):
        return ["arms have different seeds: only those that both have are compared in pairs"]
    return []


def _intended(partners: Sequence[Arm], others: Sequence[Arm]) -> list[str]:
    """What each kind of dense partner has equal with its models with experts, and what not."""
    beside = {arm.pair: arm for arm in others}
    kinds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm in partners:
        other = beside.get(arm.pair)
        if other is None:
            continue
        for name in _AMOUNTS:
            mine, theirs = getattr(arm.entries[0], name), getattr(other.entries[0], name)
            if mine and theirs and math.isfinite(mine / theirs):
                kinds[str(arm.compare)][name].append(mine / theirs)
    told = []
    for compare, ratios in kinds.items():
        line = f"compare={compare} makes {_EQUAL.get(compare, compare)} equal"
        unequal = [
            f"{_times(of_pairs)} the {_AMOUNTS[name]}"
            for name, of_pairs in ratios.items()
            if max(max(of_pairs), 1 / min(of_pairs)) >= _TOLERANCE
        ]
        if unequal:
            line += f", and not the rest: dense partners have {', '.join(unequal)}"
        told.append(line)
    return told


def _times(ratios: list[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


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
    if ratio < _TOLERANCE:
        return []
    return [f"unequal {words}: {ratio:.2f} times as much with {high[1]} as with {low[1]}"]


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
