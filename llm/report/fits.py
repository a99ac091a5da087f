"""Which scaling fits the runs of a report allow, and what comes of them."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from llm.report.collect import Result
from llm.report.scaling import Interval, Law, Parabola, bootstrap_law, fit_law, isoflop, power_law

#: Runs whose compute differs by less than this factor are taken as equal.
_EQUAL = 1.10


@dataclass(frozen=True)
class Fit:
    """A fitted law with its intervals, or the reason why there is none."""

    law: Law | None
    intervals: dict[str, Interval]
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    reason: str = ""


def law_of(results: list[Result], draws: int = 400) -> Fit | None:
    """L(N, D) over dense runs of different sizes and lengths; None where sizes do not differ.

    Experts are left out: two models of one active size need not lie on one curve. A run gives its
    last loss only, as losses under way were taken at a learning rate that had not decayed.
    N are the active parameters, D the tokens seen.
    """
    dense = _dense(results)
    chosen = dense if len({r.facts["params_total"] for r in dense}) > 1 else []
    if not chosen:
        return None
    n = np.array([r.facts["params_active"] for r in chosen], float)
    d = np.array([r.facts["tokens"] for r in chosen], float)
    loss = np.array([r.loss for r in chosen])
    if not all(r.compares_with(chosen[0]) for r in chosen):
        return Fit(None, {}, n, d, loss, "the runs learn from different data, or count otherwise")
    try:
        law = fit_law(n, d, loss)
    except ValueError as error:
        return Fit(None, {}, n, d, loss, str(error))
    return Fit(law, bootstrap_law(n, d, loss, law, draws), n, d, loss)


def _dense(results: list[Result]) -> list[Result]:
    return [r for r in results if r.finished and r.is_dense and r.repeats is None]


def isoflops_of(
    results: list[Result],
) -> tuple[list[tuple[Parabola, np.ndarray, np.ndarray]], tuple[float, float] | None]:
    """Parabolas of dense runs of equal compute, and N_best = c · C^k over those with a minimum."""
    dense = sorted(_dense(results), key=lambda r: r.flops)
    if not all(r.compares_with(dense[0]) for r in dense):
        return [], None
    groups: list[list[Result]] = []
    for run in dense:
        if groups and run.flops <= _EQUAL * groups[-1][0].flops:
            groups[-1].append(run)
        else:
            groups.append([run])
    found = []
    for group in groups:
        sizes: dict[float, list[float]] = defaultdict(list)
        for run in group:
            sizes[float(run.facts["params_active"])].append(run.loss)
        n = np.array(sorted(sizes))
        loss = np.array([np.mean(sizes[size]) for size in n])
        curve = isoflop(n, loss, float(np.mean([run.flops for run in group])))
        if curve is not None:
            found.append((curve, n, loss))
    inside = [curve for curve, _, _ in found if curve.inside]
    trend = None
    if len({curve.flops for curve in inside}) > 1:
        flops = np.array([curve.flops for curve in inside])
        trend = power_law(flops, np.array([curve.n_best for curve in inside]))
    return found, trend
