"""Measure instead of guessing: a few steps of each kind of model, in processes of their own.

They are kept under `outputs/calibration`, apart from the runs, and share the prepared data.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm.config.jobs import Jobs
from llm.plan.estimate import Planned

_STEPS = 12


def kinds(planned: Iterable[Planned]) -> list[list[str]]:
    """The overrides of one job of each size."""
    found: dict[tuple[float, float, str], Planned] = {}
    for p in planned:
        found.setdefault((p.params_total, p.flops_per_token, _batch(p)), p)
    return [p.overrides for p in found.values()]


def measure(jobs: Jobs, lines: Sequence[list[str]], outputs: Path) -> None:
    """Train each line of overrides for a few steps."""
    folder = outputs / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("data", ".partners"):
        (outputs / name).mkdir(exist_ok=True)
        if not (folder / name).exists():
            os.symlink(Path("..") / name, folder / name)
    others = [f"--config-dir={other}" for other in jobs.choices.others[:1]]
    common = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    for i, line in enumerate(lines, start=1):
        label = " ".join(word for word in line if word not in common)
        print(f"calibrating {i} of {len(lines)}: {label}", file=sys.stderr)
        given = [override for override in line if not _replaced(override)]
        command = [sys.executable, "-m", "llm.train", f"--config-path={jobs.choices.conf}", *others]
        command += [*given, f"train.budget={_STEPS}steps", f"outputs={folder}", "tracking=none"]
        command += ["run.existing=restart", "train.eval_every=1000", "train.eval_tokens=1000"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(*done.stderr.strip().splitlines()[-1:], file=sys.stderr)


def _replaced(override: str) -> bool:
    names = ("train.budget=", "outputs=", "tracking=", "tracking.", "run.", "train.eval_")
    return override.startswith(names)


def _batch(p: Planned) -> str:
    return " ".join(o for o in p.overrides if o.startswith(("train.batch", "train.grad", "opt")))
