"""`python -m llm.plan model=tiny,small moe=dense,switch seed=1,2,3`: a sweep before it is spent.

The overrides are those of `python -m llm.train -m`. Nothing is trained and PyTorch is not
imported; `--calibrate` trains each kind of model for a few steps first, in a process of its own.
`--sort=KEY` sorts by job, params_total, params_active, flops, tokens, memory or seconds.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from llm.config import stand_in

if __name__ == "__main__":  # elsewhere PyTorch may be wanted, or be there
    stand_in.install()

from llm.config import overrides as override_reading
from llm.config.command import exit_code
from llm.config.entry import choices_of, read_flags
from llm.config.errors import Refused
from llm.config.jobs import Jobs
from llm.config.plain import MISTAKES, one_line
from llm.plan.calibrate import Trial, kinds, measure
from llm.plan.estimate import Planned, Planner
from llm.plan.machine import Machines
from llm.runs.fairness import warnings
from llm.sweep.answer import Answers
from llm.sweep.resources import cpu_slots
from llm.tracking.progress import brief, clock

_SORTS = ("job", "params_total", "params_active", "flops", "tokens", "memory", "seconds")
#: Letters of a refusal in the table; a longer one is told below it.
_WIDE = 60


def run(arguments: list[str]) -> int:
    """Print the plan of the line; the exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--sort", default="job")
    own, rest = parser.parse_known_args(arguments)
    if own.sort not in _SORTS:
        raise Refused(f"--sort={own.sort}: sorts by {', '.join(_SORTS)}")
    flags = read_flags([a for a in rest if a not in ("-m", "--multirun")])
    if flags.help:
        print(__doc__)
        return 0
    choices = choices_of(flags)
    typed = override_reading.read(flags.overrides, choices, True)
    jobs = Jobs("llm.plan", print, choices, typed, True)
    try:
        planned = plan(jobs, own.calibrate)
    except MISTAKES as error:
        raise Refused(one_line(error, choices)) from error
    print(table(sorted(planned, key=lambda p: _sort_key(p, own.sort))))
    for line in search_summary(planned, jobs.sweeper) if jobs.draws else summary(planned):
        print(line)
    entries = [p.entry for p in planned if p.entry is not None and p.same_as is None]
    named = [name for name in jobs.swept if name != "seed"]
    caveats = dict.fromkeys(caveat for p in planned for caveat in p.caveats)
    for line in [*caveats, *([] if jobs.draws else warnings(entries, named))]:
        print(f"note: {line}")
    return 0


def plan(jobs: Jobs, calibrate: bool) -> list[Planned]:
    """Every job of the grid, in the order of the sweep; of a search, examples of its jobs."""
    with jobs.composing() as composer:
        config, _ = composer.job(next(jobs.each_value()))
        outputs = Path(str(config["outputs"]))
        answers = Answers(Machines(outputs).facts)
        lines = jobs.each_value() if jobs.draws else jobs.grid()
        made = [jobs.job(i, overrides, composer) for i, overrides in enumerate(lines)]
    planned = _planned(jobs, outputs, answers, made)
    if calibrate:
        unknown = [p for p in planned if p.to_do and p.counted]
        trials = kinds(p for p in unknown if p.seconds.basis in ("unknown", "scaled"))
        tried: set[str] = set()
        while True:  # which dense widths `compare=time` asks for turns out step by step
            trials += [trial for p in planned for trial in _times(p)]
            trials = list({" ".join(trial.overrides): trial for trial in trials}.values())
            trials = [trial for trial in trials if " ".join(trial.overrides) not in tried]
            if not trials:
                break
            measure(jobs, trials, outputs)
            tried |= {" ".join(trial.overrides) for trial in trials}
            planned = _planned(jobs, outputs, answers, made)
    return planned


def _times(planned: Planned) -> list[Trial]:
    """What has to run for a few steps before this job's `compare=time` is known."""
    trials = []
    for words in planned.unmeasured:
        keys = ["seed", *(word.split("=")[0] for word in words)]
        kept = [text for text in planned.overrides if text.split("=")[0] not in keys]
        trials.append(Trial([*kept, *words], planned.prepared, planned.examined))
    return trials


def _planned(jobs: Jobs, outputs: Path, answers: Answers, made: list[Any]) -> list[Planned]:
    planner = Planner(jobs, outputs, answers)
    return [planner.plan(i, job) for i, job in enumerate(made)]


def table(planned: list[Planned]) -> str:
    """One line a job; a job that is the run of another one says so and costs nothing."""
    head = ["job", "what", "state", "total", "active", "FLOP/tok", "tokens", "FLOPs"]
    head += ["memory", "time"]
    rows = [head, *map(_row, planned)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in (1, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _row(p: Planned) -> list[str]:
    first = [str(p.number), p.label or "everything at its default"]
    if p.state == "refused":
        return [*first, _refusal(p)[:_WIDE], *[""] * 7]
    if p.state == "duplicate":
        return [*first, f"the run of job {p.same_as}", *[""] * 7]
    about = "" if p.vocab_known or not p.counted else "~"
    return [
        *first,
        p.state,
        about + _number(p.params_total),
        about + _number(p.params_active),
        about + _number(p.flops_per_token),
        _number(p.tokens),
        _number(p.flops),
        _memory(p),
        _time(p),
    ]


def _number(value: float) -> str:
    return brief(value) if math.isfinite(value) else "?"


def _memory(p: Planned) -> str:
    if not math.isfinite(p.memory.value):
        return "?"
    mark = "" if p.memory.basis == "measured" else "~"
    return f"{mark}{p.memory.value / 1e9:.2f} GB"


def _time(p: Planned) -> str:
    if not math.isfinite(p.seconds.value):
        return "?"
    mark = "~" if p.seconds.basis == "scaled" else ""
    return mark + clock(p.seconds.value)


def summary(planned: list[Planned]) -> list[str]:
    """Counts and totals."""
    runs = [p for p in planned if p.state not in ("duplicate", "refused")]
    open_ones = [p for p in runs if p.to_do]
    done = sum(p.state == "finished" for p in runs)
    refused = sum(p.state == "refused" for p in planned)
    line = f"\n{len(planned)} jobs, {len(runs)} different runs, {done} finished already"
    line += f", {refused} refused" if refused else ""
    lines = [line]
    counted = [p for p in open_ones if p.counted]
    if open_ones:
        lines.append(f"to do: {len(open_ones)} runs")
    if counted:
        flops = sum(p.flops for p in counted)
        seconds = sum(p.seconds.value for p in counted)
        lines[-1] += f", {_number(flops)} FLOPs"
        if math.isfinite(seconds):
            slots = min(cpu_slots(), len(counted))
            whole = max(seconds / slots, *(p.seconds.value for p in counted), 0.0)
            lines[-1] += f", {clock(seconds)} in all, {clock(whole)} with {slots} at a time"
            lines[-1] += " (timed alone; jobs beside each other are slower)" if slots > 1 else ""
        else:
            lines[-1] += "; nothing like it has run here: --calibrate measures"
    if len(counted) < len(open_ones):
        lines.append(
            f"? for a figure: {len(open_ones) - len(counted)} of them tell only when they run "
            "(from what weights they start, or a part that needs PyTorch to be built)"
        )
    if any(not p.vocab_known for p in runs):
        lines.append("~ before a figure: estimated, as data is not prepared yet or model is new")
    elif any("scaled" in (p.seconds.basis, p.memory.basis) for p in runs):
        lines.append("~ before a figure: scaled from other runs, or by a formula")
    long = dict.fromkeys(p.problem for p in planned if len(_refusal(p)) > _WIDE)
    return [*lines, *(f"refused: {problem}" for problem in list(long)[:3])]


def _refusal(p: Planned) -> str:
    return f"refused: {p.problem}"


def search_summary(planned: list[Planned], sweeper: dict[str, Any]) -> list[str]:
    """What can be said of a search: what its trials cost, not which they are."""
    told = (
        "\na search draws its jobs as it goes, so there is no grid to list: the rows above are "
        "examples, each choice and both ends of each interval once"
    )
    counted = [p for p in planned if p.counted]
    if counted:
        flops = [p.flops for p in counted]
        told += f"; a trial costs {_number(min(flops))} to {_number(max(flops))} FLOPs"
    seconds = [p.seconds.value for p in counted if math.isfinite(p.seconds.value)]
    if seconds:
        whole = sweeper.get("n_trials", 0) * sum(seconds) / len(seconds)
        told += f", {clock(min(seconds))} to {clock(max(seconds))}"
        told += f"; all {sweeper['n_trials']} about {clock(whole)}, one by one" if whole else ""
    return [told]


def _sort_key(p: Planned, key: str) -> tuple[float, int]:
    value = {"job": p.number, "memory": p.memory.value, "seconds": p.seconds.value}.get(
        key, getattr(p, key, 0)
    )
    return (value if math.isfinite(value) else math.inf, p.number)


if __name__ == "__main__":
    sys.exit(exit_code("llm.plan", lambda: run(sys.argv[1:])))
