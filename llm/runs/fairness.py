"""Whether a comparison compares one thing: what differs beside the factors that are named."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from llm.runs.arms import Arm, Entry, arms
from llm.runs.labels import FACTS, differing, mark, within

#: What `compare` makes equal.
_EQUAL = {
    "active_flops": "active FLOPs a token",
    "total_params": "total parameters",
    "memory": "estimated memory",
    "time": "the time of a step",
}
#: By which keys a dense partner differs from its model with experts (`llm.plan.partner`).
_OF_PARTNERS = ("moe", "model.d_ff", "model.moe_every", "model.dense_first")
_AMOUNTS = {
    "tokens": "training tokens",
    "flops": "active FLOPs of training",
    "params_active": "active parameters",
    "params_total": "total parameters",
}
_TOLERANCE = 1.05
_VERSIONS = "arms were made by code whose numbers differ, and are not compared"


def warnings(entries: Sequence[Entry], named: Iterable[str]) -> list[str]:
    """One line for each thing that makes the comparison less than fair.

    Args:
        named: keys and groups that the comparison is about (`moe`, `optimizer.lr`); what lies
            within a named group belongs to it
    """
    if len(entries) < 2:
        return []
    found = arms(entries)
    if len(found) < 2:
        return []
    rows = [arm.content for arm in found]
    keys = [key for key in differing(rows) if key not in ("seed", *FACTS)]
    named = [name.replace("/", ".") for name in named]
    told = []
    partners = [arm for arm in found if arm.compare]
    meant = [*named, *_OF_PARTNERS] if partners else named
    beside = [key for key in keys if not any(within(key, name) for name in meant)]
    if named and beside:
        told.append(f"arms differ in more than the named factors: {_listed(beside)}")
    first = entries[0]
    if any(not entry.reads_like(first) for entry in entries):
        told.append("arms learn from different data: their losses do not compare")
    if any(within(key, "tokenizer") for key in keys):
        told.append("arms have different tokenizers: compare val/bpb, not val/loss")
    versions = sorted({str(row.get("result_version")) for row in rows})
    if len(versions) > 1:
        told.append(f"{_VERSIONS}: result_version {' and '.join(versions)}")
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
    kinds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm in partners:
        other = next((other for other in others if arm.jobs & other.jobs), None)
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
    sizes: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for arm in found:
        value = getattr(arm.entries[0], name)
        if value and math.isfinite(value):
            size = mark({k: v for k, v in arm.content.items() if within(k, "model")})
            sizes[size].append((value, arm.label))
    worst = max(sizes.values(), key=lambda known: max(known)[0] / min(known)[0], default=[])
    if not worst:
        return []
    low, high = min(worst), max(worst)
    ratio = high[0] / low[0]
    if ratio < _TOLERANCE:
        return []
    return [f"unequal {words}: {ratio:.2f} times as much with {high[1]} as with {low[1]}"]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
