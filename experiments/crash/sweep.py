"""Kills a sweep with SIGKILL, again and again, and looks at what the same line then makes of it.

    python experiments/crash/sweep.py --kills 20

Each time the launcher and all of its jobs are killed at a random moment, start-up included (with
--parent-only the launcher alone, and the jobs must die by themselves). At the
end the same line must finish 12 of 12 jobs, no finished run may have been trained again, and no
run directory may have been replaced.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINE = [
    "model=tiny model.d_model=32 model.n_heads=2 model.n_layers=2 model.d_ff=64",
    "model.max_seq_len=32 data=custom data.path=text.txt tokenizer=bytes tracking=none",
    "hardware=cpu hardware.precision=fp32 train.batch_size=2 train.eval_every=100",
    "train.eval_tokens=256 train.checkpoint_every=20",
]
SWEPT = ["moe=dense,switch", "seed=1,2,3,4,5,6"]


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


def finished(folder: Path) -> dict[str, float]:
    """Finished runs, with the time at which their metrics were last written."""
    done = {}
    for file in folder.glob("outputs/runs/*/run.json"):
        if json.loads(file.read_text())["state"] == "finished":
            done[file.parent.name] = (file.parent / "metrics.jsonl").stat().st_mtime
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parent-only", action="store_true", help="the jobs must die by themselves"
    )
    options = parser.parse_args()
    draw = random.Random(options.seed)
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        words = "the cat sat on the mat and saw a dog who ran to the sea".split()
        text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(3000))
        (folder / "text.txt").write_text(text + "\n")
        line = [*" ".join(LINE).split(), f"train.budget={options.steps}steps", *SWEPT]
        command = [sys.executable, "-P", "-m", "llm.train", "-m", *line]
        environment = {**os.environ, "PYTHONPATH": str(root)}

        def start() -> subprocess.Popen[bytes]:
            log = (folder / "log.txt").open("ab")
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

        begun = time.monotonic()
        before: dict[str, float] = {}
        kills = 0
        while kills < options.kills:
            process = start()
            try:
                process.wait(draw.uniform(1, 25))
                print(f"ended with {process.returncode} before kill {kills + 1}")
                break
            except subprocess.TimeoutExpired:
                pass
            victims = [process.pid] if options.parent_only else [process.pid, *processes_in(folder)]
            for victim in victims:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
            kills += 1
            for _ in range(100):
                left = processes_in(folder)
                if not left:
                    break
                time.sleep(0.05)
            assert not left, f"processes {left} survived their parent"
            now = finished(folder)
            for run, when in before.items():
                assert now.get(run) == when, f"{run} was finished and was touched again"
            before = now
            print(f"kill {kills}: {len(now)} of 12 finished")
        code = start().wait()
        now = finished(folder)
        assert code == 0, (folder / "log.txt").read_text()[-3000:]
        assert len(now) == 12, now
        for run, when in before.items():
            assert now[run] == when, f"{run} was finished and was touched again"
        assert not (folder / "outputs/runs/.replaced").exists()
        (manifest,) = folder.glob("outputs/sweeps/*/sweep.json")
        told = json.loads(manifest.read_text())["jobs"]
        assert sorted(job["run"] for job in told) == sorted(now)
        minutes = (time.monotonic() - begun) / 60
        print(f"{kills} kills, 12 of 12 finished, none twice, nothing replaced; {minutes:.1f} min")


if __name__ == "__main__":
    main()
