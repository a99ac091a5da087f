"""The plan of a line. Where it is asked for, measured instead of guessed: a few steps of each kind
of model, in processes of their own.

These are kept under `outputs/calibration`, apart from the runs, and share the prepared data.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm.config.jobs import Jobs
from llm.plan.estimate import Planned, Planner
from llm.plan.history import WALL, History
from llm.runs.files import write_json

#: Evaluations come after every fifth of them and at the end: one that loads what is loaded once,
#: one between two steps, where it can be timed, and one that shows what the end takes.
_STEPS, _EVERY = 12, 5
#: Tokens of an evaluation at most; longer ones are scaled.
_EXAMINED = 20_000
_REPLACED = ("train.budget=", "outputs=", "tracking=", "tracking.", "run.", "train.eval_")


class Trial(NamedTuple):
    """A job to train for a few steps."""

    overrides: list[str]
    prepared: bool  # whether its data are
    examined: float  # tokens of an evaluation at most


def plan(jobs: Jobs, calibrate: bool) -> list[Planned]:
    """Every job of the grid, in the order of the sweep; of a search, examples of its jobs."""
    with jobs.composing() as composer:
        config, _ = composer.job(next(jobs.each_value()))
        lines = jobs.each_value() if jobs.draws else jobs.grid()
        made = [jobs.job(i, overrides, composer) for i, overrides in enumerate(lines)]
    outputs = Path(str(config["outputs"]))
    planned = _planned(jobs, outputs, made)
    if not calibrate:
        return planned
    trials = _kinds(planned)
    tried: set[str] = set()
    while True:  # which dense widths `compare=time` asks for turns out step by step
        trials += [trial for p in planned for trial in _times(p)]
        trials = list({" ".join(trial.overrides): trial for trial in trials}.values())
        trials = [trial for trial in trials if " ".join(trial.overrides) not in tried]
        if not trials:
            return planned
        _measure(jobs, trials, outputs)
        tried |= {" ".join(trial.overrides) for trial in trials}
        planned = _planned(jobs, outputs, made)


def _planned(jobs: Jobs, outputs: Path, made: list[Any]) -> list[Planned]:
    planner = Planner(jobs, History.under(outputs))
    return [planner.plan(i, job) for i, job in enumerate(made)]


def _kinds(planned: Iterable[Planned]) -> list[Trial]:
    """One job of each size whose time is not measured yet."""
    found: dict[tuple[float, float, str], Planned] = {}
    for p in planned:
        if p.to_do and p.counted and p.seconds.basis in ("unknown", "scaled"):
            keys = ("train.batch", "train.grad", "opt")
            batch = " ".join(o for o in p.overrides if o.startswith(keys))
            found.setdefault((p.params_total, p.flops_per_token, batch), p)
    return [Trial(p.overrides, p.prepared, p.examined) for p in found.values()]


def _times(planned: Planned) -> list[Trial]:
    """What has to run for a few steps before this job's `compare=time` is known."""
    trials = []
    for words in planned.unmeasured:
        keys = ["seed", *(word.split("=")[0] for word in words)]
        kept = [text for text in planned.overrides if text.split("=")[0] not in keys]
        trials.append(Trial([*kept, *words], planned.prepared, planned.examined))
    return trials


def _measure(jobs: Jobs, trials: Sequence[Trial], outputs: Path) -> None:
    """Train each for a few steps."""
    folder = outputs / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("data", ".partners"):
        (outputs / name).mkdir(exist_ok=True)
        if not (folder / name).exists():
            os.symlink(Path("..") / name, folder / name)
    others = [f"--config-dir={other}" for other in jobs.choices.others[:1]]
    common = set.intersection(*(set(t.overrides) for t in trials)) if len(trials) > 1 else set()
    for i, trial in enumerate(trials, start=1):
        label = shlex.join(word for word in trial.overrides if word not in common)
        print(f"calibrating {i} of {len(trials)}: {label}", file=sys.stderr)
        given = [text for text in trial.overrides if not text.startswith(_REPLACED)]
        given += [f"outputs={folder}", "tracking=none"]
        if not trial.prepared:  # what is done once is not to be timed
            _command("llm.prepare", jobs, [*others, *given])
        given += [f"train.budget={_STEPS}steps", "run.existing=restart"]
        examined = round(min(trial.examined, _EXAMINED))
        given += [f"train.eval_every={_EVERY}", f"train.eval_tokens={examined}"]
        begun = time.monotonic()
        line = _command("llm.train", jobs, [*others, *given])
        if line is not None:
            write_json(Path(line) / WALL, time.monotonic() - begun)


def _command(module: str, jobs: Jobs, given: list[str]) -> str | None:
    """The last line on its standard output; None where it failed, which is told."""
    command = [sys.executable, "-m", module, f"--config-path={jobs.choices.conf}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(*done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return None
    return done.stdout.strip().splitlines()[-1]
