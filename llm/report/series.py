"""Lines through runs that differ in one thing: the number of experts, or the learning rate."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from llm.report.collect import Result
from llm.runs.fairness import flat

#: Label of a line to loss of every run at each place.
Series = dict[str, dict[Any, list[float]]]
#: d_ff is cut where experts are to cost what a dense part does.
_OF_SIZE = ("model.d_ff",)


def over_experts(results: list[Result]) -> Series:
    """Loss by number of experts; each line begins at 1 with the dense runs equal in the rest."""
    lines: dict[tuple[Any, ...], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    dense: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    keys: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        row = _settings(result, lambda key: key in _OF_SIZE)
        rest = {k: v for k, v in row.items() if not k.startswith("moe.")}
        if result.is_dense:
            dense[_key(rest)].append(result.loss)
            continue
        family = {k: v for k, v in row.items() if k != "moe.n_experts"}
        keys[_key(family)] = family
        lines[_key(family)][result.config["moe"]["n_experts"]].append(result.loss)
    for key, family in keys.items():
        rest = {k: v for k, v in family.items() if not k.startswith("moe.")}
        if _key(rest) in dense:
            lines[key][1] = dense[_key(rest)]
    return _named(lines, keys)


def over_rates(results: list[Result]) -> Series:
    """Loss by peak learning rate."""
    lines: dict[tuple[Any, ...], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    keys: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        rate = result.config["optimizer"].get("lr")
        if isinstance(rate, float):
            row = _settings(result, lambda key: key == "optimizer.lr")
            keys[_key(row)] = row
            lines[_key(row)][rate].append(result.loss)
    return _named(lines, keys)


def _settings(result: Result, without: Callable[[str], bool]) -> dict[str, Any]:
    row = flat(result.recorded)
    return {k: v for k, v in row.items() if k != "seed" and not without(k)}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted((k, str(v)) for k, v in row.items()))


def _named(
    lines: dict[tuple[Any, ...], dict[Any, list[float]]],
    keys: dict[tuple[Any, ...], dict[str, Any]],
) -> Series:
    """Lines of two places or more, named by their size and by what else differs between them."""
    kept = {key: values for key, values in lines.items() if len(values) > 1}
    rows = [keys[key] for key in kept]
    every = sorted({k for row in rows for k in row if not k.startswith("model.")})
    differing = [k for k in every if _tells(k, rows)]
    found: Series = {}
    for key, values in sorted(kept.items(), key=lambda item: _size(keys[item[0]])):
        row = keys[key]
        name = f"{row['model.d_model']} wide, {row['model.n_layers']} layers"
        words = [
            f"{k.removesuffix('._target_').rsplit('.', 1)[-1]}={_short(row[k])}"
            for k in differing
            if k in row
        ]
        name = ", ".join([name, *words])
        number = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({number + 1})" if number else name] = values
    return found


def _tells(key: str, rows: list[dict[str, Any]]) -> bool:
    """Whether rows differ in this key, and not only because one of them has another class."""
    node = f"{key.rpartition('.')[0]}._target_"
    values: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        values["" if key == node else str(row.get(node))].add(str(row.get(key)))
    return any(len(found) > 1 for found in values.values())


def _size(row: dict[str, Any]) -> tuple[int, int]:
    return row["model.d_model"], row["model.n_layers"]


def _short(value: Any) -> str:
    """A class by its own name."""
    return (
        str(value).rsplit(".", 1)[-1] if isinstance(value, str) and "llm." in value else str(value)
    )
