"""The W&B mirror: what it leaves for W&B, read back by W&B's own reader, and every way to fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.config.environment import invocation
from llm.tracking.log import MetricLog, PerfLog
from llm.tracking.none import NoTracking
from llm.tracking.wandb_mirror import Wandb
from llm.tracking.wandb_process import Mirror, flat
from tests.wandb_server import alive, wait_for


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """A user without an account, a network or a setting, in an empty home and folder."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "XDG_")):
            monkeypatch.delenv(name)
    for name in ("home", "here", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


#: One grey dot.
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6368000000820081dd436af40000000049454e44ae426082"
)


def records(run: Path) -> dict[str, list[dict]]:
    """The records of the only offline copy by kind, as the client's own reader gives them."""
    (path,) = run.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kinds: dict[str, list[dict]] = {}
    for row in map(json.loads, out.splitlines()):
        kinds.setdefault(row["type"], []).append(row.get(row["type"], {}))
    return kinds


def fake_wandb(folder: Path, monkeypatch, source: str) -> None:
    (folder / "fake" / "wandb").mkdir(parents=True)
    (folder / "fake" / "wandb" / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))


def test_a_copy_has_every_step_and_nothing_else_is_touched(tmp_path, run, capfd):
    log, perf = MetricLog(run), PerfLog(run)
    log.append(0, 0, {"train/loss": 4.0})
    log.append(1, 10, {"train/loss": 3.0})
    perf.append(1, 10, {"tokens_per_second": 7.0})
    perf.append(2, 20, {"tokens_per_second": 1.0})  # of a step that was lost when it was killed
    left = run / "wandb" / "offline-run-20200101_000000-tiny-1"  # by the killed attempt
    left.mkdir(parents=True)

    tracker = Wandb(tags=["try"], patience=60.0)
    config = {"model": {"d_model": 64, "rope": {"base": 1e4}}, "seed": 1}
    tracker.start("tiny-1", run, config, "sweep-a", resumed_at=1, flops_per_token=100.0)
    drawn = {"moe/picture": "picture.png", "moe/gone": "gone.png"}
    (run / "picture.png").write_bytes(PICTURE)
    loads = {"moe/load": [[0.3, 0.7], [0.5, 0.5]]}
    log.append(2, 20, {"train/loss": 2.0, "val/loss": 2.5, **loads, **drawn})
    perf.append(2, 20, {"tokens_per_second": 9.0})
    tracker.log(2, 20, {})
    tracker.table(2, [{"prompt": "Once", "text": "upon"}, {"prompt": "Two", "text": "cats"}])
    log.append(3, 30, {"train/loss": float("nan"), "moe/bias": [0.1, -0.1]})
    tracker.finish(exit_code=1)

    copy = records(run)
    points = [row["item"] for row in copy["history"]]
    assert [point["_step"] for point in points] == [0, 1, 2, 3]
    assert [point["tokens"] for point in points] == [0, 10, 20, 30]
    assert [point["flops"] for point in points] == [0, 1000, 2000, 3000]
    assert [point.get("train/loss") for point in points] == [4.0, 3.0, 2.0, None]
    assert [point.get("perf/tokens_per_second") for point in points] == [None, 7.0, 9.0, None]
    assert points[3]["moe/bias.values"] == [0.1, -0.1]
    (media,) = run.glob("wandb/offline-run-*/files/media")
    (table,) = media.glob("table/samples*.json")
    assert json.loads(table.read_text())["data"] == [[2, "Once", "upon"], [2, "Two", "cats"]]
    (table,) = media.glob("table/moe/load*.json")
    cells = [[0, 0, 0.3], [0, 1, 0.7], [1, 0, 0.5], [1, 1, 0.5]]
    assert json.loads(table.read_text())["data"] == cells
    (picture,) = media.rglob("*.png")
    assert picture.read_bytes() == PICTURE

    (info,) = copy["run"]
    assert info["run_id"] == "tiny-1" and info["run_group"] == "sweep-a" and info["tags"] == ["try"]
    settings = info["config"]["update"]
    assert settings["model.d_model"] == 64 and settings["model.rope.base"] == 1e4
    axes = {row.get("glob_name"): row.get("step_metric") for row in copy["metric"]}
    assert all(axes[f"{s}/*"] == "tokens" for s in ("train", "val", "moe", "perf", "data"))
    summary = {}
    for row in copy["summary"]:
        summary |= row.get("update", {})
    assert summary["val/loss"] == 2.5
    assert [row["exit_code"] for row in copy["exit"]] == [1]

    assert left.name in os.listdir(run / "wandb" / "earlier")
    assert capfd.readouterr() == ("", "")
    assert not os.listdir(tmp_path / "home") and not os.listdir(tmp_path / "here")


@pytest.mark.slow
def test_a_killed_run_has_its_points_and_no_exit_so_that_it_shows_as_crashed(run):
    script = f"""
import os, signal
from pathlib import Path
from llm.tracking.log import MetricLog
from llm.tracking.wandb_mirror import Wandb
log, tracker = MetricLog(Path({str(run)!r})), Wandb()
tracker.start("killed", Path({str(run)!r}), {{}}, None, 0)
print(tracker._process.pid, flush=True)
log.append(0, 0, {{"x": 1.0}})
log.append(1, 1, {{"x": 2.0}})
log.append(2, 2, {{"x": 3.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.returncode == -signal.SIGKILL
    wait_for(lambda: not alive(int(parent.stdout)))
    copy = records(run)
    # The last step is left for the attempt that goes on: more of it may have been to come.
    assert [row["item"]["x"] for row in copy["history"]] == [1, 2]
    assert "exit" not in copy


@pytest.mark.slow
def test_online_without_a_network_keeps_an_offline_copy_and_says_so(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    said: list[str] = []
    log = MetricLog(run)
    log.append(0, 0, {"x": 1.0})
    tracker = Wandb(mode="online", init_timeout=0.5, patience=60.0)
    tracker.start("fallen-back", run, {}, None, 0, say=said.append)
    tracker.finish(0)
    copy = records(run)
    (line,) = said
    assert "cannot go online" in line and "offline copy" in line and "\n" not in line
    assert [row["item"]["x"] for row in copy["history"]] == [1]
    assert [row.get("exit_code", 0) for row in copy["exit"]] == [0]


def test_a_broken_library_turns_the_copy_off_with_one_line(tmp_path, run, monkeypatch):
    fake_wandb(tmp_path, monkeypatch, "raise ImportError('no libfoo')")
    monkeypatch.setattr("llm.tracking.wandb_mirror.PERIOD", 0.0)
    said: list[str] = []
    tracker = Wandb()
    tracker.start("broken", run, {}, None, 0, say=said.append)
    wait_for(lambda: tracker.log(0, 0, {}) or said)
    tracker.log(1, 1, {})
    tracker.table(1, [{"text": "a"}])
    tracker.finish(0)
    assert said == [
        "W&B is off: its process ended (ImportError: no libfoo); metrics.jsonl has "
        f"everything, and {invocation('llm.runs', 'sync', outputs=run.parent.parent)} sends it"
    ]


RAISES_IN_LOG = """
class Run:
    starting_step = 0
    def define_metric(self, *a, **k): pass
    def log(self, *a, **k): raise ConnectionResetError("service died")
def Settings(**k): pass
def init(**k): return Run()
"""


def test_a_service_that_died_is_noticed_at_the_end_at_the_latest(tmp_path, run, monkeypatch):
    fake_wandb(tmp_path, monkeypatch, RAISES_IN_LOG)
    said: list[str] = []
    MetricLog(run).append(0, 0, {"x": 1.0})
    tracker = Wandb(patience=30.0)
    tracker.start("died", run, {}, None, 0, say=said.append)
    tracker.finish(0)
    assert len(said) == 1 and "service died" in said[0]


def test_a_hang_costs_the_patience_and_leaves_no_process(tmp_path, run, monkeypatch):
    fake_wandb(tmp_path, monkeypatch, "import time; time.sleep(600)")
    said: list[str] = []
    tracker = Wandb(patience=0.3)
    began = time.monotonic()
    tracker.start("hangs", run, {}, None, 0, say=said.append)
    assert tracker._process is not None
    pid = tracker._process.pid
    for step in range(1000):
        tracker.log(step, step, {})
    assert time.monotonic() - began < 30
    tracker.finish(0)
    assert time.monotonic() - began < 60
    assert len(said) == 1 and said[0].startswith("W&B is off: had not finished after 0.3 s; ")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_folder_that_cannot_be_written_is_one_line(run):
    (run / "wandb").write_text("a file in the way")
    said: list[str] = []
    tracker = Wandb()
    tracker.start("id", run, {}, None, 0, say=said.append)
    tracker.log(0, 0, {})
    tracker.finish(0)
    assert len(said) == 1 and said[0].startswith("W&B is off: could not start")


def test_the_number_of_names_is_bounded(run, monkeypatch):
    monkeypatch.setattr("llm.tracking.wandb_process.MAX_NAMES", 3)
    logged, told = [], []
    mirror = Mirror.__new__(Mirror)
    mirror.names, mirror.full = set(), False
    mirror.run = type("Run", (), {"starting_step": 0})()
    mirror.run.log = lambda row, step, commit: logged.append(row)
    mirror.tell = told.append
    mirror.log(0, {"a": 1, "b": 2, "c": 3, "d": 4})
    mirror.log(1, {"a": 1, "e": 5})
    assert logged == [{"a": 1, "b": 2, "c": 3}, {"a": 1}]
    assert len(told) == 1


def test_flat_names():
    assert flat({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}


def test_no_tracking_has_the_same_interface(run):
    tracker = NoTracking()
    tracker.start("id", run, {}, None, 0, flops_per_token=1.0, say=print)
    tracker.log(0, 0, {})
    tracker.table(0, [])
    tracker.finish(0)
    assert os.listdir(run) == []
