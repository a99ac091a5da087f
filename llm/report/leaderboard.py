"""Arms of a report: means over seeds, intervals, and what a paired test says of them."""

from collections import defaultdict
from dataclasses import dataclass

from llm.report.collect import Result
from llm.report.statistics import Comparison, Mean, compare, mean_interval


@dataclass
class Standing:
    """One arm: its finished runs and how it stands against another arm."""

    label: str
    results: list[Result]
    loss: Mean
    excess: Mean | None
    against: str | None = None  # label of the arm that it is compared with
    alone: bool = False  # no other arm compares with it
    comparison: Comparison | None = None

    @property
    def first(self) -> Result:
        return self.results[0]

    def mean(self, name: str) -> float:
        """Of a figure of run.json."""
        return sum(float(r.facts[name]) for r in self.results) / len(self.results)


def by_arm(results: list[Result]) -> dict[str, list[Result]]:
    """Label to finished runs, in order of seed. Not of arms that were pruned: the seeds that came
    through would flatter them."""
    found: dict[str, list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.seed):
        if result.finished and not result.pruned and result.repeats is None:
            found[result.label].append(result)
    return {r.label: found[r.label] for r in results if r.label in found}


def standings(results: list[Result], metric: str = "val_loss") -> list[Standing]:
    """Best first. Each arm is compared with the dense arm of its size, where there is one and it
    is another arm; otherwise with the best arm; in any case with one that learns the same text and
    whose losses were computed alike.

    Args:
        metric: `val_loss`, or `val_bpb` where tokenizers differ
    """
    rows = []
    for label, runs in by_arm(results).items():
        loss = mean_interval([float(run.facts[metric]) for run in runs])
        known = [run.facts["excess"] for run in runs if run.facts.get("excess") is not None]
        rows.append(Standing(label, runs, loss, mean_interval(known) if known else None))
    rows.sort(key=lambda row: row.loss.mean)
    for row in rows:
        near = [other for other in rows if other.first.compares_with(row.first)]
        row.alone = 1 == len(near) < len(rows)
        other = _reference(row, near)
        if other is not None:
            row.against = other.label
            row.comparison = compare(_by_seed(row, metric), _by_seed(other, metric))
    return rows


def _reference(row: Standing, rows: list[Standing]) -> Standing | None:
    dense = [
        other
        for other in rows
        if other is not row
        and other.first.is_dense
        and not row.first.is_dense
        and _size(other.first) == _size(row.first)
    ]
    # Of several its own partner, or the one that differs in least, so that one thing is compared.
    if dense:
        return max(dense, key=lambda other: _likeness(other, row))
    return rows[0] if row is not rows[0] else None


def _size(result: Result) -> tuple[object, object]:
    return result.config["model"]["d_model"], result.config["model"]["n_layers"]


def _likeness(one: Standing, other: Standing) -> tuple[bool, int]:
    a, b = one.first.entry, other.first.entry
    equal = sum(a.content[key] == b.content[key] for key in a.content.keys() & b.content.keys())
    return bool(a.jobs & b.jobs), equal


def _by_seed(row: Standing, metric: str) -> dict[int, float]:
    return {run.seed: float(run.facts[metric]) for run in row.results}
