"""The W&B mirror against a server: what arrives, and what a server's troubles cost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.runs.__main__ import run as runs_command
from llm.tracking.log import MetricLog, PerfLog
from llm.tracking.wandb_mirror import Wandb
from tests.toy import TOY
from tests.wandb_server import Server, alive, wait_for

ONLINE = ["tracking=wandb", "tracking.mode=online", "tracking.init_timeout=2"]
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that is the only one, for a user with a key and no other setting."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "XDG_")):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # a whole number
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.trouble = None
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def online(run: Path, **options) -> Wandb:
    return Wandb(mode="online", **{"init_timeout": 120.0, "patience": 120.0, **options})


def write(run: Path, *steps: int) -> None:
    """What training leaves of some steps."""
    log, perf = MetricLog(run), PerfLog(run)
    for step in steps:
        log.append(step, 10 * step, {"train/loss": 4.0 - step / 10})
        perf.append(step, 10 * step, {"perf/seconds": float(step)})
    log.close()
    perf.close()


def agrees(server: Server, folder: Path) -> bool:
    """Whether the server has each line of the log once, in order, with what the log says."""
    rows = MetricLog.read(folder / "metrics.jsonl")
    joined: dict[int, dict] = {}
    for row in rows:
        joined.setdefault(row["step"], {}).update(row)
    sent = server.runs[folder.name]
    numbers = [name for name in rows[0] if isinstance(rows[0][name], float)]
    assert sent.steps == list(joined)
    assert not sent.misplaced
    for row, told in zip(joined.values(), sent.history, strict=True):
        assert [told[name] for name in numbers] == [row[name] for name in numbers]
    return True


KILLED = """
import os, signal, sys
from pathlib import Path
from llm.tracking.wandb_mirror import Wandb
tracker = Wandb(mode="online", init_timeout=120.0)
tracker.start("run", Path(sys.argv[1]), {}, "a-sweep", 0)
print(tracker._process.pid, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def first_attempt(server, run):
    """A run that was mirrored up to step 6 of 7: kills it, and has its mirror's process id."""
    write(run, *range(1, 8))
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run)],
        env=os.environ | {"PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None

    def kill() -> None:
        parent.communicate("now\n")
        assert parent.returncode == -signal.SIGKILL

    kill.mirror = int(parent.stdout.readline())
    wait_for(lambda: "run" in server.runs and len(server.runs["run"].steps) == 6)
    yield kill
    parent.kill()
    parent.wait()


def goes_on(run: Path) -> Wandb:
    """From a checkpoint at step 4, up to step 10."""
    kept = (run / "metrics.jsonl").read_bytes().split(b"\n")[:4]
    (run / "metrics.jsonl").write_bytes(b"\n".join(kept) + b"\n")
    write(run, *range(5, 11))
    tracker = online(run)
    tracker.start("run", run, {}, None, 4, say=pytest.fail)
    return tracker


def test_a_killed_run_shows_as_crashed_and_goes_on_without_lost_or_doubled_steps(
    server, run, first_attempt
):
    log = MetricLog(run)  # it was killed before it could write down how long step 8 took
    log.append(8, 80, {"train/loss": 3.2})
    first_attempt()
    tracker = goes_on(run)  # before the copy of the killed attempt is through
    wait_for(lambda: not alive(first_attempt.mirror))
    assert server.runs["run"].exit_code is None  # W&B hears no more of it, and calls it crashed
    wait_for(lambda: len(server.runs["run"].steps) == 9)
    write(run, 11)
    tracker.finish(0)
    sent = server.runs["run"]
    assert agrees(server, run) and sent.steps == list(range(1, 12))
    assert [row["perf/seconds"] for row in sent.history] == list(range(1, 12))
    assert sent.exit_code == 0 and sent.group == "a-sweep" and len(server.runs) == 1
    assert "WARNING" not in (run / "wandb" / "mirror.log").read_text()


@pytest.mark.slow
def test_the_copies_of_two_attempts_do_not_meet(server, run, first_attempt):
    first_attempt()
    os.kill(first_attempt.mirror, signal.SIGSTOP)
    tracker = goes_on(run)
    try:
        time.sleep(8)  # enough for the second to begin, did it not wait
        assert alive(first_attempt.mirror) and server.runs["run"].resumes == 0
    finally:
        os.kill(first_attempt.mirror, signal.SIGCONT)
    wait_for(lambda: not alive(first_attempt.mirror))
    tracker.finish(0)
    assert agrees(server, run) and server.runs["run"].steps == list(range(1, 11))


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["hang", 401, 500])
def test_a_server_that_is_in_trouble_from_the_start_gets_it_all_later(server, run, trouble):
    server.trouble = trouble
    said: list[str] = []
    tracker = online(run, init_timeout=1.0)
    tracker.start("run", run, {}, None, 0, say=said.append)
    write(run, 1, 2, 3)
    tracker.finish(0)
    assert server.trouble == trouble and not server.runs
    assert len(said) == 1 and "offline copy" in said[0] and "llm.runs sync" in said[0]
    assert list(run.glob("wandb/offline-run-*"))

    server.trouble = None
    assert online(run).send("run", run, {}, None, 0)
    assert agrees(server, run) and server.runs["run"].exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["hang", "drop"])
def test_a_server_that_goes_away_costs_the_patience_and_gets_the_rest_later(server, run, trouble):
    write(run, 1, 2, 3)
    said: list[str] = []
    tracker = online(run, patience=1.0)
    tracker.start("run", run, {}, None, 0, say=said.append)
    wait_for(lambda: "run" in server.runs and server.runs["run"].steps == [1, 2])
    server.trouble = trouble
    write(run, *range(4, 30))
    tracker.log(29, 290, {})
    tracker.finish(0)
    assert server.trouble == trouble and server.runs["run"].exit_code is None
    assert len(said) == 1 and "had not finished after 1 s" in said[0]

    server.trouble = None
    assert online(run).send("run", run, {}, None, 0)
    assert agrees(server, run) and server.runs["run"].exit_code == 0
    # and once more changes nothing
    assert online(run).send("run", run, {}, None, 0)
    assert agrees(server, run)


@pytest.mark.slow
def test_an_outage_under_way_is_made_up_for(server, run):
    write(run, 1, 2, 3)
    said: list[str] = []
    tracker = online(run)
    tracker.start("run", run, {}, None, 0, say=said.append)
    wait_for(lambda: "run" in server.runs and server.runs["run"].steps == [1, 2])
    server.trouble, before = 500, len(server.asked)
    write(run, *range(4, 10))
    wait_for(lambda: any("file_stream" in asked for asked in server.asked[before:]))
    server.trouble = None
    tracker.finish(0)
    assert agrees(server, run) and server.runs["run"].exit_code == 0 and said == []


@pytest.mark.slow
def test_points_that_are_refused_for_good_are_no_success(server, run):
    write(run, 1, 2, 3)
    server.only, server.trouble = ".*/file_stream", 401
    said: list[str] = []
    assert not online(run).send("run", run, {}, None, 0, say=said.append)
    assert len(said) == 1 and "refuses" in said[0]


@pytest.mark.slow
def test_a_run_that_was_killed_still_shows_as_crashed_when_it_is_sent_later(server, run):
    write(run, 1, 2, 3)
    assert online(run).send("run", run, {}, None, None)
    assert server.runs["run"].steps == [1, 2] and server.runs["run"].exit_code is None


@pytest.mark.slow
def test_training_ends_although_the_mirror_stands_still_all_the_time(llm_train, monkeypatch):
    alone = llm_train("outputs=alone").folder
    spawn, stopped = Wandb._spawn, []

    def spawn_and_stop(tracker, folder, job):
        spawn(tracker, folder, job)
        stopped.append(tracker._process.pid)
        os.kill(stopped[0], signal.SIGSTOP)

    monkeypatch.setattr(Wandb, "_spawn", spawn_and_stop)
    monkeypatch.setattr("llm.tracking.wandb_mirror.PERIOD", 0.0)
    every = ["train.sample_every=1", "tracking=wandb", "tracking.patience=0.1"]
    ended = llm_train("outputs=watched", *every)
    assert ended.code == 0 and "had not finished after 0.1 s" in ended.err
    assert (ended.folder / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    assert not alive(stopped[0])


@pytest.mark.slow
def test_training_against_a_server_that_hangs_is_the_same_training(server, llm_train, capsys):
    alone = llm_train("outputs=alone").folder
    server.trouble = "hang"
    ended = llm_train("outputs=watched", *ONLINE, "tracking.patience=1")
    assert ended.code == 0 and "W&B" in ended.err and server.trouble == "hang"
    assert (ended.folder / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()

    server.trouble = None
    assert runs_command(["sync", "--outputs=watched"]) == 0
    assert capsys.readouterr().out.strip() == ended.folder.name
    assert agrees(server, ended.folder) and server.runs[ended.folder.name].exit_code == 0


@pytest.mark.slow
def test_jobs_of_a_sweep_share_its_group(server, llm_train):
    line = ["-m", "seed=1,2", "hydra/launcher=basic", *ONLINE, "tracking.patience=60"]
    ended = llm_train(*line, "tracking.project=mine", "tracking.tags=[a]")
    assert ended.code == 0
    (sweep,) = Path("outputs/sweeps").iterdir()
    assert {sent.group for sent in server.runs.values()} == {sweep.name}
    assert {sent.project for sent in server.runs.values()} == {"mine"}
    folders = [Path("outputs/runs") / name for name in server.runs]
    assert len(folders) == 2 and all(agrees(server, folder) for folder in folders)


@pytest.mark.slow
def test_training_killed_again_and_again_is_one_whole_run(server, toy_text, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    line = [sys.executable, "-m", "llm.train", *TOY, *ONLINE, "tracking.patience=60"]
    # Slow enough steps that the server has heard of some before all are done.
    line += ["train.budget=150steps", "train.grad_accum_steps=4", "train.eval_every=50"]
    line += ["train.checkpoint_every=10"]
    for reached in (10, 50):
        process = subprocess.Popen([*line, "tracking.init_timeout=120"], stdout=subprocess.PIPE)
        while process.poll() is None and not any(
            len(sent.steps) >= reached for sent in server.runs.values()
        ):
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert all(sent.exit_code is None for sent in server.runs.values())
    ended = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    folder = Path(ended.stdout.strip().splitlines()[-1])
    assert agrees(server, folder) and len(server.runs) == 1
    sent = server.runs[folder.name]
    assert sent.exit_code == 0 and sent.steps == list(range(1, 151))
    assert all(row["perf/seconds"] > 0 for row in sent.history)
