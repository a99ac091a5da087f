"""Lines through runs that differ in one thing: the number of experts, or the learning rate."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from llm.report.collect import Result
from llm.runs.labels import Content, labels, mark, within

#: Label of a line to loss of every run at each place.
Series = dict[str, dict[Any, list[float]]]
#: d_ff is cut where experts are to cost what a dense part does.
_OF_SIZE = ("model.d_ff",)
#: How lines are named before anything else.
_SIZE = ("model.d_model", "model.n_layers")


def over_experts(results: list[Result]) -> Series:
    """Loss by number of experts; each line begins at 1 with the dense runs equal in the rest."""
    lines = _Lines()
    dense: dict[str, list[float]] = defaultdict(list)
    for result in results:
        rest = _without(result, *_OF_SIZE)
        if result.is_dense:
            dense[_shape(rest)].append(result.loss)
        else:
            lines.add(result, _without(result, "moe.n_experts", *_OF_SIZE), _n_experts(result))
    for line, row in lines.rows.items():
        if _shape(row) in dense:
            lines.places[line][1] = dense[_shape(row)]
    return lines.named()


def over_rates(results: list[Result]) -> Series:
    """Loss by peak learning rate."""
    lines = _Lines()
    for result in results:
        rate = result.config["optimizer"].get("lr")
        if isinstance(rate, float):
            lines.add(result, _without(result, "optimizer.lr"), rate)
    return lines.named()


class _Lines:
    """Lines of runs that are equal but for their place on it."""

    def __init__(self) -> None:
        self.places: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.rows: dict[str, Content] = {}
        self.chosen: dict[str, Mapping[str, str]] = {}

    def add(self, result: Result, row: Content, place: Any) -> None:
        self.places[mark(row)][place].append(result.loss)
        self.rows[mark(row)] = row
        self.chosen[mark(row)] = result.entry.chosen

    def named(self) -> Series:
        """Lines of two places or more, named by their size and by what else differs."""
        kept = [line for line, places in self.places.items() if len(places) > 1]
        kept.sort(key=lambda line: _size(self.rows[line]))
        rest = [{k: v for k, v in self.rows[line].items() if k not in _SIZE} for line in kept]
        words = labels(rest, [self.chosen[line] for line in kept])
        sizes = [_size(self.rows[line]) for line in kept]
        names = [
            f"{width} wide, {layers} layers{', ' if told else ''}{told}"
            for (width, layers), told in zip(sizes, words, strict=True)
        ]
        return {name: self.places[line] for name, line in zip(names, kept, strict=True)}


def _without(result: Result, *keys: str) -> Content:
    return {k: v for k, v in result.entry.content.items() if k not in ("seed", *keys)}


def _shape(row: Content) -> str:
    """All but the experts."""
    return mark({k: v for k, v in row.items() if not within(k, "moe")})


def _n_experts(result: Result) -> Any:
    return result.config["moe"]["n_experts"]


def _size(row: Content) -> tuple[int, int]:
    return row["model.d_model"], row["model.n_layers"]
