"""Measure instead of guessing: a few steps of each kind of model, in processes of their own.

They are kept under `outputs/calibration`, apart from the runs, and share the prepared data.
"""

import os
import subprocess
import sys
from pathlib import Path

from llm.config.jobs import Jobs
from llm.plan.estimate import Planned

_STEPS = 12


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
        command = [sys.executable, "-m", "llm.train", f"--config-path={jobs.choices.conf}", *others]
        command += [*given, f"train.budget={_STEPS}steps", f"outputs={folder}", "tracking=none"]
        command += ["run.existing=restart", "train.eval_every=1000", "train.eval_tokens=1000"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
    return len(kinds)


def _replaced(override: str) -> bool:
    names = ("train.budget=", "outputs=", "tracking=", "tracking.", "run.", "train.eval_")
    return override.startswith(names)


def _batch(p: Planned) -> str:
    return " ".join(o for o in p.overrides if o.startswith(("train.batch", "train.grad", "opt")))
