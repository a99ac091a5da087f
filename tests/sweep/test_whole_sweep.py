"""Whole sweeps in processes of their own: killed, edited under way, typed again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.runs.code import code_facts
from llm.runs.listing import sweeps_of
from tests.toy import TOY

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(toy_text):
    """A copy of the code that may be edited, and how to start a sweep from it."""
    root = toy_text.parent / "checkout"
    for name in ("llm", "conf", "hydra_plugins"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(*overrides: str) -> subprocess.Popen:
        command = [sys.executable, "-P", "-m", "llm.train", "-m", *TOY, *overrides]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return root, start


def facts() -> list[dict]:
    return [json.loads(file.read_text()) for file in Path("outputs/runs").glob("*/run.json")]


def wait_for(condition, process) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("in vain")


def test_an_edit_in_mid_sweep_changes_nothing_and_a_killed_sweep_goes_on(checkout):
    root, start = checkout
    before = code_facts(root / "llm")["code_hash"]
    line = ["seed=1,2,3", "train.budget=60steps", "hydra.launcher.jobs=1"]
    process = start(*line)
    wait_for(lambda: any(told["state"] == "finished" for told in facts()), process)
    train = root / "llm" / "build.py"
    train.write_text(train.read_text() + "\nEDITED = True\n")
    style = root / "conf" / "model" / "style" / "gpt2.yaml"
    style.write_text(style.read_text().replace("activation: gelu_tanh", "activation: relu2"))
    wait_for(lambda: len(facts()) > 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    refused = start(*line)
    _, told = refused.communicate()
    assert refused.returncode == 2
    assert "conf/model/style/gpt2.yaml, llm/build.py" in told
    assert "run.code_changed=frozen" in told

    done = {path: path.stat().st_mtime_ns for path in Path("outputs/runs").glob("*/metrics.jsonl")}
    first = min(done, key=done.get)
    again = start(*line, "run.code_changed=frozen")
    out, told = again.communicate()
    assert again.returncode == 0, told
    assert first.stat().st_mtime_ns == done[first]
    found = facts()
    assert [run["state"] for run in found] == ["finished"] * 3
    assert {run["code_hash"] for run in found} == {before}
    configs = [path.read_text() for path in Path("outputs/runs").glob("*/config.yaml")]
    assert all("gelu_tanh" in text for text in configs)
    differs = re.compile(r"^(seed|  code_changed): .*$", re.MULTILINE)
    assert len({differs.sub("", text) for text in configs}) == 1
    manifest = json.loads((Path(out.strip().splitlines()[-1]) / "sweep.json").read_text())
    assert {job["run"] for job in manifest["jobs"]} == {
        path.parent.name for path in Path("outputs/runs").glob("*/run.json")
    }


def test_ctrl_c_saves_and_the_same_line_goes_on(checkout):
    _, start = checkout
    line = ["seed=1,2", "train.budget=300steps", "train.eval_every=100"]
    process = start(*line)
    logs = Path("outputs/runs")
    wait_for(lambda: any(p.stat().st_size for p in logs.glob("*/metrics.jsonl")), process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "interrupted" in {run["state"] for run in facts()}
    again = start(*line)
    _, told = again.communicate()
    assert again.returncode == 0, told
    assert [run["steps"] for run in facts()] == [300, 300]


def test_a_run_that_two_sweeps_share_is_one_run_in_both(checkout):
    _, start = checkout
    sweeps = [start("seed=1,2", "train.budget=30steps"), start("seed=2,3", "train.budget=30steps")]
    for process in sweeps:  # at the same time: who comes second waits
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    runs = list(Path("outputs/runs").glob("*/run.json"))
    assert len(runs) == 3
    listed = sweeps_of(Path("outputs"))
    assert sorted(len(sweeps) for sweeps in listed.values()) == [1, 1, 2]
    assert set(listed) == {path.parent.name for path in runs}
    for path in runs:
        rows = (path.parent / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, 31))
