"""A plan as people read it: a line for each job, sums, and what to know before it runs."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from llm.config.jobs import Jobs
from llm.plan.estimate import Planned
from llm.plan.history import Estimate
from llm.runs.fairness import warnings
from llm.sweep.resources import cpu_slots
from llm.tracking.progress import brief, clock

_HEAD = ("job", "what", "state", "total", "active", "FLOP/tok", "tokens", "FLOPs", "memory", "time")
#: Letters of a refusal in the table; a longer one is told below it.
_WIDE = 60


def lines(planned: list[Planned], sort: str) -> Iterator[str]:
    """One line a job; a job that is the run of another one says so and costs nothing."""
    rows = [_HEAD, *map(_row, sorted(planned, key=lambda p: _sort_key(p, sort)))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i in (1, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
        if not number:
            yield "  ".join("─" * width for width in widths)


def _sort_key(p: Planned, key: str) -> tuple[float, int]:
    value = {"job": p.number, "memory": p.memory.value, "seconds": p.seconds.value}.get(
        key, getattr(p, key, 0)
    )
    return (value if math.isfinite(value) else math.inf, p.number)


def _row(p: Planned) -> tuple[str, ...]:
    first = (str(p.number), p.label or "everything at its default")
    if p.state == "refused":
        return (*first, _refusal(p)[:_WIDE], *[""] * 7)
    if p.state == "duplicate":
        return (*first, f"the run of job {p.same_as}", *[""] * 7)
    about = "" if p.vocab_known or not p.counted else "~"
    sizes = (p.params_total, p.params_active, p.flops_per_token)
    return (
        *(*first, p.state, *(about + _number(size) for size in sizes)),
        *(_number(p.tokens), _number(p.flops)),
        *(_told(p.memory, lambda size: f"{size / 1e9:.2f} GB"), _told(p.seconds, clock)),
    )


def _refusal(p: Planned) -> str:
    return f"refused: {p.problem}"


def _number(value: float) -> str:
    return brief(value) if math.isfinite(value) else "?"


def _told(estimate: Estimate, show: Callable[[float], str]) -> str:
    if not math.isfinite(estimate.value):
        return "?"
    return "~" * (estimate.basis == "scaled") + show(estimate.value)


def sums(planned: list[Planned]) -> list[str]:
    """Counts and totals of a grid."""
    runs = [p for p in planned if p.state not in ("duplicate", "refused")]
    open_ones = [p for p in runs if p.to_do]
    done = sum(p.state == "finished" for p in runs)
    refused = sum(p.state == "refused" for p in planned)
    line = f"\n{len(planned)} jobs, {len(runs)} different runs, {done} finished already"
    line += f", {refused} refused" if refused else ""
    told = [line]
    counted = [p for p in open_ones if p.counted]
    if open_ones:
        told.append(f"to do: {len(open_ones)} runs")
    if counted:
        flops = sum(p.flops for p in counted)
        seconds = sum(p.seconds.value for p in counted)
        told[-1] += f", {_number(flops)} FLOPs"
        if math.isfinite(seconds):
            slots = min(cpu_slots(), len(counted))
            whole = max(seconds / slots, *(p.seconds.value for p in counted), 0.0)
            told[-1] += f", {clock(seconds)} in all, {clock(whole)} with {slots} at a time"
            told[-1] += " (timed alone; jobs beside each other are slower)" if slots > 1 else ""
        else:
            told[-1] += "; nothing like it has run here: --calibrate measures"
    if len(counted) < len(open_ones):
        told.append(
            f"? for a figure: {len(open_ones) - len(counted)} of them tell only when they run "
            "(from what weights they start, or a part that cannot be built)"
        )
    if any(not p.vocab_known for p in runs):
        told.append("~ before a figure: estimated, as data is not prepared yet or model is new")
    elif any("scaled" in (p.seconds.basis, p.memory.basis) for p in runs):
        told.append("~ before a figure: scaled from other runs, or by a formula")
    long = dict.fromkeys(p.problem for p in planned if len(_refusal(p)) > _WIDE)
    return [*told, *(f"refused: {problem}" for problem in list(long)[:3])]


def of_search(planned: list[Planned], sweeper: dict[str, Any]) -> list[str]:
    """What can be said of a search: what its trials cost, not which they are."""
    told = (
        "\na search draws its jobs as it goes, so there is no grid to list: the rows above are "
        "examples, each choice and both ends of each interval once"
    )
    flops = [p.flops for p in planned if p.counted]
    if flops:
        told += f"; a trial costs {_number(min(flops))} to {_number(max(flops))} FLOPs"
    seconds = [p.seconds.value for p in planned if p.counted and math.isfinite(p.seconds.value)]
    if seconds:
        whole = sweeper.get("n_trials", 0) * sum(seconds) / len(seconds)
        told += f", {clock(min(seconds))} to {clock(max(seconds))}"
        told += f"; all {sweeper['n_trials']} about {clock(whole)}, one by one" if whole else ""
    return [told]


def notes(planned: list[Planned], jobs: Jobs) -> list[str]:
    """What to know of the jobs, and what would make their comparison unfair."""
    entries = [p.entry for p in planned if p.entry is not None and p.same_as is None]
    named = [name for name in jobs.swept if name != "seed"]
    caveats = dict.fromkeys(caveat for p in planned for caveat in p.caveats)
    return [*caveats, *([] if jobs.draws else warnings(entries, named))]
