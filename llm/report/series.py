"""Lines through runs that differ in one thing: the number of experts, or the learning rate."""

from collections import defaultdict
from typing import Any

from llm.report.collect import Result
from llm.runs.labels import Content, labels, mark, within

#: Label of a line to loss of every run at each place.
Series = dict[str, dict[Any, list[float]]]
#: What its line has in common, the run, and its place on the line.
_Point = tuple[Content, Result, Any]
#: d_ff is cut where experts are to cost what a dense part does.
_OF_SIZE = ("model.d_ff",)
#: How lines are named before anything else.
_SIZE = ("model.d_model", "model.n_layers")


def over_experts(results: list[Result]) -> Series:
    """Loss by number of experts; each line begins at 1 with the dense runs equal in the rest."""
    points: list[_Point] = [
        (_without(r, "moe.n_experts", *_OF_SIZE), r, r.config["moe"]["n_experts"])
        for r in results
        if not r.is_dense
    ]
    families = {mark(row): row for row, *_ in points}.values()
    for result in results:
        shape = _shape(_without(result, *_OF_SIZE)) if result.is_dense else None
        points += [(row, result, 1) for row in families if _shape(row) == shape]
    return _lines(points)


def over_rates(results: list[Result]) -> Series:
    """Loss by peak learning rate."""
    rates = [(r, r.config["optimizer"].get("lr")) for r in results]
    return _lines([(_without(r, "optimizer.lr"), r, x) for r, x in rates if isinstance(x, float)])


def _lines(points: list[_Point]) -> Series:
    """Lines of two places or more, named by their size and by what else differs between them."""
    places: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    firsts = {mark(row): (row, result.entry.chosen) for row, result, _ in reversed(points)}
    for row, result, place in points:
        places[mark(row)][place].append(result.loss)
    kept = [line for line, found in places.items() if len(found) > 1]
    kept.sort(key=lambda line: _size(firsts[line][0]))
    rest = [{k: v for k, v in firsts[line][0].items() if k not in _SIZE} for line in kept]
    named = labels(rest, [firsts[line][1] for line in kept])
    return {
        ", ".join([_size_words(firsts[line][0]), *([words] if words else [])]): places[line]
        for line, words in zip(kept, named, strict=True)
    }


def _without(result: Result, *keys: str) -> Content:
    return {k: v for k, v in result.entry.content.items() if k not in ("seed", *keys)}


def _shape(row: Content) -> str:
    """All but the experts."""
    return mark({k: v for k, v in row.items() if not within(k, "moe")})


def _size(row: Content) -> list[int]:
    return [row[key] for key in _SIZE]


def _size_words(row: Content) -> str:
    return "{} wide, {} layers".format(*_size(row))
