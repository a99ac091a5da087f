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
    groups = [g for g in GROUPS if _tells(g, rows, [options.get(g, "") for options in chosen])]
    usual = [i for i, compare in enumerate(compares) if compare is None] or range(len(rows))
    told: list[list[str]] = [[] for _ in rows]
    for key in differing(rows[i] for i in usual):
        places = [_place(key, *pair, groups) for pair in zip(rows, chosen, strict=True)]
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
            words = [f"{g}={chosen[i][g]}" for g in groups if g in chosen[i]]
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
            return found
        for i, keys in missing.items():
            told[i] += keys


def _tells(group: str, rows: Sequence[Content], options: Sequence[str]) -> bool:
    """Whether rows with different options of the group differ there."""
    nodes: dict[str, set[str]] = defaultdict(set)
    for row, option in zip(rows, options, strict=True):
        nodes[option].add(_node(row, group))
    return len(nodes) > 1 and sum(map(len, nodes.values())) == len(set().union(*nodes.values()))


def _node(row: Content, place: str) -> str:
    return mark({k: v for k, v in row.items() if within(k, place)})


def _place(
    key: str, row: Content, options: Mapping[str, str], groups: Iterable[str]
) -> tuple[str, ...]:
    """The options and classes among which `key` means one thing."""
    if key == "data_fingerprint":  # which follows from these, where the text is one
        return _node(row, "data"), _node(row, "tokenizer")
    classes = [f"{key[:end]}._target_" for end, letter in enumerate(key) if letter == "."]
    chosen = [options.get(group, "") for group in groups if within(key, group)]
    return (*chosen, *(str(row.get(name)) for name in classes if name != key))


def _names(keys: Iterable[str], groups: Iterable[str]) -> dict[str, str]:
    """Each key's shortest ending that no other key and no group has."""
    endings = {}
    for key in keys:
        path = key.removesuffix("._target_").split(".")
        endings[key] = [".".join(path[-n:]) for n in range(1, len(path) + 1)]
    taken = Counter([*groups, *(ending for found in endings.values() for ending in found)])
    return {k: next((e for e in found if taken[e] == 1), k) for k, found in endings.items()}


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
