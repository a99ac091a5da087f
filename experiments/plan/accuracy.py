"""What `llm.plan` says of jobs, beside what they then took: memory and time.

    python experiments/plan/accuracy.py

Six jobs, dense and with experts, of two sizes and two batch sizes, are planned from the formulas
alone, planned again after `--calibrate`, and trained one after another. Memory is the peak of the
process, time the clock's from its start to its end. After calibration memory is to be within 15%
and time within 20%; exit code 1 where they are not. Two minutes on two cores that do nothing else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llm.config import overrides
from llm.config.choices import Choices
from llm.config.jobs import Jobs
from llm.plan.calibrate import plan
from llm.plan.estimate import Planned

MEMORY, TIME = 0.15, 0.20
COMMON = """model=nano model.max_seq_len=128 data=pydoc tokenizer=bytes hardware=cpu
    hardware.precision=fp32 tracking=none train.eval_every=100 train.eval_tokens=8192
    train.checkpoint_every=100""".split()
JOBS = [
    "moe=dense model.d_model=64 train.batch_size=4",
    "moe=dense model.d_model=64 train.batch_size=16",
    "moe=dense model.d_model=192 train.batch_size=8",
    "moe=topk model.d_model=64 train.batch_size=4",
    "moe=topk model.d_model=192 train.batch_size=8",
    "moe=switch model.d_model=128 train.batch_size=16",
]


def planned(line: list[str], calibrate: bool) -> Planned:
    choices = Choices()
    jobs = Jobs("llm.plan", print, choices, overrides.read(line, choices, True), True)
    (found,) = plan(jobs, calibrate)
    return found


def trained(line: list[str]) -> tuple[float, float]:
    """Peak bytes and seconds of the process."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "llm.train", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - begun
    facts = json.loads((Path(done.stdout.splitlines()[-1]) / "run.json").read_bytes())
    return facts["peak_memory"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="only the first so many")
    options = parser.parse_args()
    head = ("job", "formula", "plan", "took", "off", "plan", "took", "off")
    with tempfile.TemporaryDirectory() as folder:
        given = [*COMMON, f"outputs={folder}", f"train.budget={options.steps}steps"]
        lines = [[*given, *job.split()] for job in JOBS[: options.jobs]]
        subprocess.run(
            [sys.executable, "-m", "llm.prepare", *given], check=True, stdout=subprocess.DEVNULL
        )
        formulas = [planned(line, False).memory.value for line in lines]
        told = [planned(line, True) for line in lines]
        print("{:<48} {:>9} {:>7} {:>7} {:>6} {:>7} {:>7} {:>6}".format(*head))
        worst_memory = worst_time = 0.0
        for job, line, formula, p in zip(JOBS, lines, formulas, told, strict=False):
            memory, seconds = trained(line)
            off_memory, off_time = p.memory.value / memory - 1, p.seconds.value / seconds - 1
            worst_memory = max(worst_memory, abs(off_memory))
            worst_time = max(worst_time, abs(off_time))
            print(
                f"{job:<48} {formula / 1e6:6.0f} MB {p.memory.value / 1e6:4.0f} MB"
                f" {memory / 1e6:4.0f} MB {off_memory:+6.1%}"
                f" {p.seconds.value:5.1f} s {seconds:5.1f} s {off_time:+6.1%}",
                flush=True,
            )
    print(f"memory within {worst_memory:.1%} (asked {MEMORY:.0%}), ", end="")
    print(f"time within {worst_time:.1%} (asked {TIME:.0%})")
    sys.exit(worst_memory > MEMORY or worst_time > TIME)


if __name__ == "__main__":
    main()
