"""Short names that tell configs apart: `moe=topk lr=0.002`."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm.config.choices import leaves

#: Facts of a run that are part of its content beside the config.
FACTS = ("data_fingerprint", "init_from", "result_version")
#: Groups that are named by the chosen option, in this order.
GROUPS = ("model", "moe", "data", "tokenizer", "optimizer")
#: Groups that decide nothing by themselves.
_SILENT = {"hardware", "tracking", "experiments", "debug"}

Content = dict[str, Any]  # dotted keys to values


def flat(config: Mapping[str, Any]) -> Content:
    """Dotted keys to values; lists are values, an empty mapping and null are left out."""
    return {k: v for k, v in leaves(dict(config), "") if v is not None and v != {}}


def differing(rows: Iterable[Content]) -> list[str]:
    """The keys in which rows differ."""
    rows = list(rows)
    keys = sorted({key for row in rows for key in row})
    return [key for key in keys if len({mark(row.get(key)) for row in rows}) > 1]


def within(key: str, place: str) -> bool:
    return key == place or key.startswith(f"{place}.")


def labels(
    rows: Sequence[Content],
    chosen: Sequence[Mapping[str, str]],
    compares: Sequence[str | None] | None = None,
) -> list[str]:
    """Short names that tell rows of different content apart: `moe=topk lr=0.002`.

    A group is named by its option, if rows with different options really differ there. Then what
    differs among rows of the same options and classes is named by key. A dense partner is named by
    what it has equal (`compare=time`), and by the keys that make it equal if nothing else tells.
    """
    compares = compares or [None] * len(rows)
    groups = _telling(rows, chosen)
    usual = [i for i, compare in enumerate(compares) if compare is None] or range(len(rows))
    told: list[list[str]] = [[] for _ in rows]
    for key in differing(rows[i] for i in usual):
        places = [
            _place(key, row, options, groups) for row, options in zip(rows, chosen, strict=True)
        ]
        values: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for i in usual:
            values[places[i]].add(mark(rows[i].get(key)))
        for i, place in enumerate(places):
            if len(values.get(place, ())) > 1:
                told[i].append(key)
    while True:
        names = _names({key for keys in told for key in keys}, groups)
        alike: dict[str, list[int]] = defaultdict(list)
        found = []
        for i, row in enumerate(rows):
            words = [f"{_leaf(g)}={chosen[i][g]}" for g in groups if g in chosen[i]]
            words += [f"compare={compares[i]}"] if compares[i] else []
            keys = sorted(told[i], key=lambda key: key == "seed")
            found.append(" ".join([*words, *(f"{names[k]}={_shown(row, k)}" for k in keys)]))
            alike[found[i]].append(i)
        missing = {
            i: [key for key in differing(rows[j] for j in same) if key not in told[i]]
            for same in alike.values()
            for i in same
        }
        if not any(missing.values()):
            return _numbered(found, rows)
        for i, keys in missing.items():
            told[i] += keys


def _numbered(labels: list[str], rows: Sequence[Content]) -> list[str]:
    """The labels, with a number where different rows have one, as with long values cut short."""
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    found = []
    for label, row in zip(labels, rows, strict=True):
        n = numbers[label].setdefault(mark(row), len(numbers[label]) + 1)
        found.append(label if n == 1 else f"{label} ({n})")
    return found


def _place(
    key: str, row: Content, options: Mapping[str, str], groups: Iterable[str]
) -> tuple[str, ...]:
    """The options and classes among which `key` means one thing."""
    if key == "data_fingerprint":  # which follows from these, where the text is one
        return tuple(mark(_node(row, group)) for group in ("data", "tokenizer"))
    classes = [f"{key[:end]}._target_" for end, letter in enumerate(key) if letter == "."]
    chosen = [options.get(g, "") for g in groups if within(key, g.replace("/", "."))]
    return (*chosen, *(str(row.get(name)) for name in classes if name != key))


def _node(row: Content, group: str) -> Content:
    return {k: v for k, v in row.items() if within(k, group.replace("/", "."))}


def _telling(rows: Sequence[Content], chosen: Sequence[Mapping[str, str]]) -> list[str]:
    """The groups whose options tell rows apart, outer ones first."""
    found: list[str] = []
    every = {group for options in chosen for group in options} - _SILENT
    known = [*(g for g in GROUPS if g in every), *sorted(every - set(GROUPS))]
    for group in sorted(known, key=lambda g: g.count("/")):
        nodes: dict[tuple[str, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for row, options in zip(rows, chosen, strict=True):
            outer = tuple(options.get(g, "") for g in found if group.startswith(f"{g}/"))
            nodes[outer][options.get(group, "")].add(mark(_node(row, group)))
        several = any(len(by_option) > 1 for by_option in nodes.values())
        if several and all(
            sum(map(len, by_option.values())) == len(set().union(*by_option.values()))
            for by_option in nodes.values()
        ):
            found.append(group)
    return found


def _names(keys: Iterable[str], groups: Iterable[str]) -> dict[str, str]:
    """Each key's shortest ending that no other key and no group has."""
    parts = {key: key.removesuffix("._target_").split(".") for key in keys}
    taken = Counter(".".join(p[-n:]) for p in parts.values() for n in range(1, len(p) + 1))
    taken.update(map(_leaf, groups))
    found = {}
    for key, path in parts.items():
        endings = [".".join(path[-n:]) for n in range(1, len(path) + 1)]
        found[key] = next((e for e in endings if taken[e] == 1), key)
    return found


def _leaf(group: str) -> str:
    return group.rsplit("/", 1)[-1]


def _shown(row: Content, key: str) -> str:
    """A value as one types it; a class by its own name, a fingerprint by its beginning."""
    value = row.get(key)
    if key in FACTS:
        return str(value)[:8]
    if key.endswith("_target_"):
        return str(value).rsplit(".", 1)[-1]
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def mark(value: Any) -> str:
    """A value, to be compared."""
    return json.dumps(value, sort_keys=True)
