"""Measure instead of guessing: a few steps of each kind of model, in processes of their own.

They are kept under `outputs/calibration`, apart from the runs, and share the prepared data.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from llm.config.jobs import Jobs
from llm.plan.estimate import Planned
from llm.plan.history import WALL
from llm.runs.files import write_json

#: Evaluations come after every fifth of them and at the end: one that loads what is loaded once,
#: one between two steps, where it can be timed, and one that shows what the end takes.
_STEPS, _EVERY = 12, 5
#: Tokens of an evaluation at most; longer ones are scaled.
_EXAMINED = 20_000


class Trial(NamedTuple):
    """A job to train for a few steps."""

    overrides: list[str]
    prepared: bool  # whether its data are
    examined: float  # tokens of an evaluation at most


def kinds(planned: Iterable[Planned]) -> list[Trial]:
    """One job of each size."""
    found: dict[tuple[float, float, str], Planned] = {}
    for p in planned:
        found.setdefault((p.params_total, p.flops_per_token, _batch(p)), p)
    return [Trial(p.overrides, p.prepared, p.examined) for p in found.values()]


def measure(jobs: Jobs, trials: Sequence[Trial], outputs: Path) -> None:
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
        given = [override for override in trial.overrides if not _replaced(override)]
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


def _replaced(override: str) -> bool:
    names = ("train.budget=", "outputs=", "tracking=", "tracking.", "run.", "train.eval_")
    return override.startswith(names)


def _batch(p: Planned) -> str:
    return " ".join(o for o in p.overrides if o.startswith(("train.batch", "train.grad", "opt")))
