"""Kills a sweep with SIGKILL, again and again, and looks at what the same line then makes of it.

    python experiments/crash/sweep.py --kills 20

Each time the launcher and all of its jobs are killed at a random moment, start-up included (with
--parent-only the launcher alone, and the jobs must die by themselves), and the same line is typed
again. At the end it must finish 12 of 12 jobs. Not a byte and not a time of a finished run's files
may have changed since, so that none was run twice; no run directory may have been replaced, no
checkpoint lost, and each log must have every step once. Exit code 1 where that is not so.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LINE = [
    "model=tiny model.d_model=32 model.n_heads=2 model.n_layers=2 model.d_ff=64",
    "model.max_seq_len=32 data=custom data.path=text.txt tokenizer=bytes tracking=none",
    "hardware=cpu hardware.precision=fp32 train.batch_size=2 train.eval_every=100",
    "train.eval_tokens=256 train.checkpoint_every=20",
]
SWEPT = ["moe=dense,switch", "seed=1,2,3,4,5,6"]
JOBS = 12

#: Every file of a finished run: its checksum and the time at which it was written.
Files = dict[str, tuple[str, int]]


def processes_in(folder: Path) -> list[int]:
    """Ids of the processes that work in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                here = os.readlink(entry / "cwd")
            except OSError:
                continue
            if Path(here).is_relative_to(folder):
                found.append(int(entry.name))
    return found


def runs_in(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("outputs/runs/*/run.json"))


def finished(folder: Path) -> dict[str, Files]:
    """The finished runs, with all of their files."""
    done = {}
    for run in runs_in(folder):
        if json.loads((run / "run.json").read_bytes())["state"] == "finished":
            files = [file for file in sorted(run.rglob("*")) if file.is_file()]
            done[run.name] = {
                str(file.relative_to(run)): (
                    hashlib.sha256(file.read_bytes()).hexdigest(),
                    file.stat().st_mtime_ns,
                )
                for file in files
            }
    return done


def standing(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each run the inode of its directory, and the step of its newest checkpoint."""
    return {
        run.name: (
            run.stat().st_ino,
            max((int(f.name[5:]) for f in run.glob("checkpoints/step-*")), default=0),
        )
        for run in runs_in(folder)
    }


def logged(folder: Path) -> int:
    """Bytes of all metric logs: they grow when some job trains."""
    return sum(file.stat().st_size for file in folder.glob("outputs/runs/*/metrics.jsonl"))


def wait_for_a_moment(process: subprocess.Popen[bytes], folder: Path, dice: random.Random) -> str:
    """Until the kill; what it then falls into. The process may have ended before."""
    if len(finished(folder)) == JOBS:
        what, rest = "answers", dice.uniform(0, 4)
    elif dice.random() < 0.25:
        what, rest = "starts", dice.uniform(0, 8)
    else:
        what, rest, before = "trains", dice.uniform(0, 2), logged(folder)
        while process.poll() is None and logged(folder) <= before:
            before = min(before, logged(folder))  # cut back to the checkpoint
            time.sleep(0.02)
    with suppress(subprocess.TimeoutExpired):
        process.wait(rest)
    return what


def kill(process: subprocess.Popen[bytes], folder: Path, parent_only: bool) -> None:
    victims = [process.pid] if parent_only else [process.pid, *processes_in(folder)]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    left = processes_in(folder)
    for _ in range(100):
        if not left:
            return
        time.sleep(0.05)
        left = processes_in(folder)
    raise AssertionError(f"processes {left} survived their parent")


class Witness:
    """Remembers what was there, and says where it changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.done: dict[str, Files] = {}
        self.stood: dict[str, tuple[int, int]] = {}

    def look(self) -> int:
        """Compare with the last time; how many runs are finished."""
        done, stand = finished(self.folder), standing(self.folder)
        for run, files in self.done.items():
            now = done.get(run, {})
            changed = sorted(f for f in {*files, *now} if files.get(f) != now.get(f))
            assert not changed, f"{run} was finished, and then changed: {changed}"
        for run, (inode, step) in self.stood.items():
            assert run in stand and stand[run][0] == inode, f"{run} was replaced"
            assert stand[run][1] >= step, f"{run} lost its checkpoint of step {step}"
        assert not (self.folder / "outputs/runs/.replaced").exists()
        self.done, self.stood = done, stand
        return len(done)


def check_the_end(folder: Path, steps: int) -> None:
    (manifest,) = folder.glob("outputs/sweeps/*/sweep.json")
    told = json.loads(manifest.read_bytes())["jobs"]
    runs = runs_in(folder)
    assert sorted(job["run"] for job in told) == [run.name for run in runs]
    for run in runs:
        rows = (run / "metrics.jsonl").read_bytes().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, steps + 1)), run


def trial(
    folder: Path,
    start: Callable[[], subprocess.Popen[bytes]],
    kills: int,
    steps: int,
    dice: random.Random,
    parent_only: bool,
) -> None:
    """Kill so many times, look each time, and let the line end."""
    witness, done = Witness(folder), 0
    while done < kills:
        process = start()
        what = wait_for_a_moment(process, folder, dice)
        if process.poll() is not None:  # it was quicker
            assert process.returncode == 0, (folder / "log.txt").read_text()[-3000:]
            witness.look()
            continue
        kill(process, folder, parent_only)
        done += 1
        n = witness.look()
        reached = sum(step for _, step in witness.stood.values())
        share = reached / (JOBS * steps)
        print(f"kill {done:2} while it {what}: {n:2} of {JOBS} finished, {share:4.0%}", flush=True)
    code = start().wait()
    assert code == 0, (folder / "log.txt").read_text()[-3000:]
    assert witness.look() == JOBS, list(witness.done)
    check_the_end(folder, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parent-only", action="store_true", help="the jobs must die by themselves"
    )
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        words = "the cat sat on the mat and saw a dog who ran to the sea".split()
        text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(3000))
        (folder / "text.txt").write_text(text + "\n")
        line = [*" ".join(LINE).split(), f"train.budget={options.steps}steps", *SWEPT]
        command = [sys.executable, "-P", "-m", "llm.train", "-m", *line]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(root)}

        def start() -> subprocess.Popen[bytes]:
            log = (folder / "log.txt").open("ab")
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

        begun = time.monotonic()
        dice = random.Random(options.seed)
        trial(folder, start, options.kills, options.steps, dice, options.parent_only)
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{options.kills} kills, {JOBS} of {JOBS} finished, none twice, nothing overwritten; "
        f"{minutes:.1f} min"
    )


if __name__ == "__main__":
    main()
