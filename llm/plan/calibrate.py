"""Measure instead of guessing: a few steps of each kind of model, in processes of their own.

They are kept under `outputs/calibration`, apart from the runs, and share the prepared data.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from llm.config.jobs import Jobs
from llm.plan.estimate import Planned
from llm.plan.history import WALL
from llm.runs.files import write_json

#: Evaluations come after every fifth of them and at the end: one that loads what is loaded once,
#: one between two steps, where it can be timed, and one that shows what the end takes.
_STEPS, _EVERY = 12, 5
#: Tokens of an evaluation at most; longer ones are scaled.
_EXAMINED = 20_000


def calibrate(jobs: Jobs, planned: list[Planned], outputs: Path) -> int:
    """Train one job of each size for a few steps; returns how many kinds were measured."""
    kinds: dict[tuple[float, float, str], Planned] = {}
    for p in planned:
        kinds.setdefault((p.params_total, p.flops_per_token, _batch(p)), p)
    folder = outputs / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    (outputs / "data").mkdir(exist_ok=True)
    if not (folder / "data").exists():
        os.symlink(Path("..") / "data", folder / "data")
    others = [f"--config-dir={other}" for other in jobs.choices.others[:1]]
    for i, p in enumerate(kinds.values(), start=1):
        print(f"calibrating {i} of {len(kinds)}: {p.label}", file=sys.stderr)
        given = [override for override in p.overrides if not _replaced(override)]
        given += [f"outputs={folder}", "tracking=none"]
        if not p.prepared:  # what is done once is not to be timed
            _command("llm.prepare", jobs, [*others, *given])
        given += [f"train.budget={_STEPS}steps", "run.existing=restart"]
        examined = round(min(p.examined, _EXAMINED))
        given += [f"train.eval_every={_EVERY}", f"train.eval_tokens={examined}"]
        begun = time.monotonic()
        line = _command("llm.train", jobs, [*others, *given])
        if line is not None:
            write_json(Path(line) / WALL, time.monotonic() - begun)
    return len(kinds)


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
