"""The local launcher, with processes that do what a test says instead of training."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llm.config.outcome import Outcome, SweepJob
from llm.sweep import launch, process
from llm.sweep.prune import Pruner
from llm.sweep.table import Table
from llm.sweep.task import Task


class FakeJobs:
    command, sweep = "llm.train", "toy"

    def __init__(self, folder: Path):
        self.folder = str(folder)


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Makes a pool whose jobs run the given Python lines (each its own), and remembers starts."""
    started: list[int] = []

    def make(*scripts: str, parallel: int = 2, **options) -> launch._Pool:
        def start(jobs, job, log, extra):
            started.append(job.number)
            text = f"import os, sys, time, signal\n{scripts[job.number]}"
            return subprocess.Popen(
                [sys.executable, "-S", "-c", text],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=tmp_path,
                env={**os.environ, **extra},
                start_new_session=True,
            )

        monkeypatch.setattr(process, "start", start)
        tasks = [
            Task(SweepJob(i, [f"seed={i}"], f"seed={i}", {}, {}, {}, [], [], "toy", str(tmp_path)))
            for i in range(len(scripts))
        ]
        settings = {"retries": 0, "backoff": 0.01, "fail_fast": False, **options}
        made = launch._Pool(FakeJobs(tmp_path), tasks, parallel, **settings)
        made.started = started
        return made

    return make


def answer(number: int, **told: object) -> str:
    """A script that leaves an outcome."""
    outcome = json.dumps({"job": number, **told})
    code = told.get("exit", 0)
    file = f"jobs/.{number:04}-{os.getpid()}.outcome"
    return f"open({file!r}, 'w').write({outcome!r}); sys.exit({code})"


def states(pool: launch._Pool) -> list[str]:
    return [task.state for task in pool.tasks]


def test_a_killed_job_is_counted_and_the_others_go_on(pool, capsys):
    made = pool(answer(0, run="a", val_loss=1.5), "os.kill(os.getpid(), 9)", answer(2, run="c"))
    made.work()
    assert states(made) == ["finished", "failed", "finished"]
    assert made.tasks[0].outcome.val_loss == 1.5
    assert "job 1 (seed=1): killed by SIGKILL" in capsys.readouterr().err
    lines = (Path(made.jobs.folder) / "jobs.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["exit"] for line in lines) == [-9, 0, 0]


def test_what_the_machine_did_is_tried_again_and_what_the_job_did_is_not(pool):
    flaky = f"""
if os.path.exists("once"):
    {answer(0, run="a")}
open("once", "w").close()
os.kill(os.getpid(), 9)
"""
    diverged = answer(1, exit=1, problem="the loss became nan", again=False)
    made = pool(flaky, diverged, answer(2, exit=2, problem="no", again=False), retries=2)
    made.work()
    assert states(made) == ["finished", "failed", "refused"]
    assert sorted(made.started) == [0, 0, 1, 2]


def test_fail_fast_saves_the_others(pool):
    waits = "signal.signal(15, lambda *a: sys.exit(143)); open('up', 'w').close(); time.sleep(300)"
    fails = "\nwhile not os.path.exists('up'): time.sleep(0.01)\nsys.exit(1)"
    made = pool(waits, fails, answer(2), fail_fast=True)
    made.work()
    assert states(made) == ["interrupted", "failed", "waiting"]


def test_a_signal_lets_the_jobs_save_and_a_second_one_kills(pool):
    saves = "signal.signal(15, lambda *a: sys.exit(143)); open('0', 'w').close(); time.sleep(300)"
    hangs = "signal.signal(15, signal.SIG_IGN); open('1', 'w').close(); time.sleep(300)"
    made = pool(saves, hangs, answer(2))
    folder = Path(made.jobs.folder)

    def press() -> None:
        while not ((folder / "0").exists() and (folder / "1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while made.stop is None:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    with launch._signals(made):
        finger.start()
        made.work()
    finger.join()
    assert made.stop == signal.SIGINT
    assert states(made) == ["interrupted", "interrupted", "waiting"]


def test_no_more_at_a_time_than_memory_allows(pool):
    alone = "assert not os.path.exists('busy'); open('busy', 'w').close(); time.sleep(0.1)\n"
    made = pool(*(alone + "os.remove('busy'); " + answer(i) for i in range(3)), parallel=3)
    made.memory = 10.0
    for task in made.tasks:
        task.memory = 8.0
    made.work()
    assert states(made) == ["finished"] * 3


def test_jobs_of_one_run_share_one_process(pool):
    made = pool(answer(0, run="a", val_loss=2.0), answer(1))
    made.tasks[1].shares = made.tasks[0]
    made.work()
    assert made.started == [0]
    assert made.tasks[1].outcome == Outcome(1, ["seed=1"], run="a", val_loss=2.0)


def test_a_gpu_is_leased_to_one_job(pool, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "gpu_ids", lambda: ["0", "1"])
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    script = "g = 'gpu' + os.environ['CUDA_VISIBLE_DEVICES']; os.mkdir(g); time.sleep(0.1)\n"
    scripts = [script + "os.rmdir(g); " + answer(i) for i in range(4)]
    made = pool(*scripts, parallel=4)
    for task in made.tasks:
        task.device = "cuda"
    made.gpus = launch.Gpus(["0", "1"])
    made.work()
    assert states(made) == ["finished"] * 4


def test_the_table_tells_progress_and_time_left(tmp_path):
    (tmp_path / "jobs").mkdir()
    tasks = [
        Task(SweepJob(i, [], f"seed={i}", {}, {}, {}, [], [], "toy", str(tmp_path)))
        for i in range(3)
    ]
    tasks[0].outcome = Outcome(0, run="a", val_loss=1.25)
    tasks[0].seconds = 60.0
    tasks[1].process = object()  # as good as running
    tasks[1].began = time.monotonic() - 30
    tasks[1].log.write_text("starting\n 50% 0:30 left, loss 2.100, val 2.200\ntorn 60%")
    table = Table(tasks, slots=1, stream=io.StringIO())
    summary, *rows = table.lines(10)
    assert summary == "3 jobs: 1 finished, 1 running, 1 waiting; 1:30 left"
    assert rows[0].startswith("   1 seed=1   50% ████████········ 0:30 left, loss 2.100")
    assert rows[-1] == "   0 seed=0  finished  val/loss 1.2500"


def test_a_process_dies_with_its_parent(tmp_path):
    child = (
        "from llm.sweep.process import _die_with_the_parent as d; d(); import time;"
        "print('up', flush=True); time.sleep(300)"
    )
    parent = f"""
import subprocess, sys, time
p = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=-1, stdout=-1,
                     start_new_session=True)
p.stdout.readline()
print(p.pid, flush=True)
time.sleep(300)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(3000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return  # dead, and nobody has asked
        time.sleep(0.02)
    pytest.fail("the child lives on")


def test_a_hopeless_arm_is_stopped_in_all_its_seeds(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "_LOOK", 0.05)
    bad = "signal.signal(2, lambda *a: sys.exit(130)); time.sleep(300)"
    made = pool(*[answer(i, run=f"r{i}") for i in range(4)], bad, answer(5), parallel=1)
    made.pruner = Pruner(after=2)
    for number, task in enumerate(made.tasks):
        task.arm = f"lr={min(number, 4)}"
        task.folder = tmp_path / "runs" / f"r{number}"
        task.folder.mkdir(parents=True)
        (task.folder / "run.json").write_text('{"state": "running", "text_fingerprint": "a"}')
        losses = {4: (9.0, 8.5), 5: ()}.get(number, (2.0, 1.0))
        rows = [{"step": i, "tokens": i, "val/loss": x, "val/bpb": x} for i, x in enumerate(losses)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (task.folder / "metrics.jsonl").write_text(text)
    (tmp_path / "runs" / ".locks").mkdir()
    made.work()
    assert states(made) == ["finished"] * 4 + ["pruned"] * 2
    assert made.started in ([0, 1, 2, 3], [0, 1, 2, 3, 4])
    assert made.tasks[4].outcome.val_loss == 8.5 and made.tasks[5].outcome.val_loss is None
    assert json.loads((tmp_path / "runs/r4/run.json").read_text())["state"] == "pruned"
    assert "pruned: val/bpb 8.5000 after 1 tokens, 1.0000 the median" in capsys.readouterr().err
