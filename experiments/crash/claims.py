"""A thousand claims of a run at once, and sixteen commands at once: who trains, and where?

    python experiments/crash/claims.py
    python experiments/crash/claims.py --claims 100 --launches 4

First a thousand processes claim a run at the same moment, as jobs of sweeps do: all of them the
same run, then ten different ones. Whoever gets it "trains" for some milliseconds; in the second
round a fifth of those are killed with SIGKILL instead of ending, and others have to take over.
Then sixteen `llm.train` start together, half of them the same line, the others each its own, with
nothing prepared. There must be as many directories as different runs, one runner in each and never
two at a time, and everybody else must have answered from it or been told who trains it. Exit code
1 where that is not so.
"""

import argparse
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from llm.runs.directory import claim

FACTS = {"state": "running", "code_hash": "one"}
TOY = """model=tiny model.d_model=32 model.n_heads=2 model.n_layers=2 model.d_ff=64 moe=dense
    model.max_seq_len=32 data=custom data.path=text.txt tokenizer=bytes tracking=none hardware=cpu
    hardware.precision=fp32 train.batch_size=2 train.eval_every=50 train.eval_tokens=256
    train.budget=100steps""".split()


def storm(root: Path, n: int, identities: int = 1, deaths: float = 0.0, seed: int = 0) -> Counter:
    """Let `n` processes claim at once; counts what each told: trained, answered, died.

    Args:
        root: `outputs/runs`
        identities: different runs, claimed in turn
        deaths: share of the processes that are killed if they get to train
    Raises AssertionError where not each run has one directory and one runner at a time.
    """
    dice = random.Random(seed)
    go, start = os.pipe()
    answers, tell = os.pipe()
    gc.freeze()  # or each fork copies what the collector touches
    children = []
    for i in range(n):
        dies = dice.random() < deaths
        child = os.fork()
        if child == 0:
            try:
                os.close(start)
                os.close(answers)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                os.read(go, 1)  # until everybody is there
                _job(root, f"run-{i % identities:04}", dies, tell)
            finally:
                os._exit(0)
        children.append(child)
    gc.unfreeze()
    for end in (go, start, tell):
        os.close(end)
    with os.fdopen(answers) as lines:
        told = Counter(tuple(line.split()) for line in lines)
    for child in children:
        os.waitpid(child, 0)
    names = {f"run-{i:04}" for i in range(min(n, identities))}
    assert {folder.name for folder in root.iterdir() if folder.name[0] != "."} == names
    for name in names:
        assert told[name, "trained"] == 1, told
        assert json.loads((root / name / "run.json").read_bytes())["state"] == "finished"
    counts: Counter = Counter()
    for (_, what), count in told.items():
        counts[what] += count
    assert counts.keys() <= {"trained", "answered", "died"}, counts
    assert counts.total() == n, counts
    return counts


def _job(root: Path, name: str, dies: bool, tell: int) -> None:
    run = claim(root, name, {}, FACTS, "resume", "refuse", wait=True)
    what = "answered"
    if run.state != "finished":
        mark = run.folder / "training"
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            time.sleep(0.02)
            mark.unlink()
            what = "died" if dies else "trained"
        except FileExistsError:
            what = "beside-another"
    if what == "trained":
        run.update(state="finished")
    os.write(tell, f"{name} {what}\n".encode())
    if what == "died":
        os.kill(os.getpid(), signal.SIGKILL)
    run.release()


def launches(folder: Path, n: int) -> Counter:
    """Start `n` commands at once in `folder`, half of them the same; counts what they did."""
    words = "the cat sat on the mat and saw a dog who ran to the sea".split()
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(3000))
    (folder / "text.txt").write_text(text + "\n")
    repository = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
    seeds = [0 if i < n // 2 else i for i in range(n)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "llm.train", *TOY, f"seed={seed}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    told: Counter = Counter()
    for seed, process in zip(seeds, processes, strict=True):
        out, problems = process.communicate()
        if process.returncode == 0:
            told[seed, "answered" if "finished already" in out else "trained"] += 1
        else:
            assert process.returncode == 2, problems
            assert "is being trained by another process" in problems, problems
            told[seed, "told who trains it"] += 1
    found = [file.parent for file in folder.glob("outputs/runs/*/run.json")]
    assert len(found) == len(set(seeds)), found
    for seed in set(seeds):
        assert told[seed, "trained"] == 1, told
    for run in found:
        assert json.loads((run / "run.json").read_bytes())["state"] == "finished"
        rows = (run / "metrics.jsonl").read_bytes().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, 101)), run
    counts: Counter = Counter()
    for (_, what), count in told.items():
        counts[what] += count
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=int, default=1000)
    parser.add_argument("--launches", type=int, default=16)
    options = parser.parse_args()
    for identities, deaths in ((1, 0.0), (10, 0.2)) if options.claims else ():
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            told = storm(Path(folder), options.claims, identities, deaths)
            seconds = time.monotonic() - begun
        print(
            f"{options.claims} claims at once of {identities} run(s): {identities} director"
            f"{'y' if identities == 1 else 'ies'}, {told['trained']} trained, {told['died']} "
            f"killed and taken over, {told['answered']} answered; {seconds:.1f} s",
            flush=True,
        )
    if options.launches:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            told = launches(Path(folder), options.launches)
            seconds = time.monotonic() - begun
        counts = ", ".join(f"{count} {what}" for what, count in sorted(told.items()))
        runs = options.launches - options.launches // 2 + 1
        head = f"{options.launches} commands at once, {runs} different runs: {runs} directories"
        print(f"{head}, {counts}; {seconds:.1f} s")


if __name__ == "__main__":
    main()
