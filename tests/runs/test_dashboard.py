"""`python -m llm.runs dashboard`: what the workspace shows of which runs, and where it goes."""

import json
import os
from pathlib import Path

import pytest
import yaml

from llm.config.errors import Refused
from llm.runs.__main__ import run as runs_command
from llm.tracking.log import MetricLog
from tests.wandb_server import ENTITY, Server

pytest.importorskip("wandb_workspaces")


@pytest.fixture(autouse=True)
def outputs(workplace, monkeypatch):
    """Two runs of a sweep, one of them shared with another; a user without an account."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(workplace))
    rows = {
        "dense-1": {"val/loss": 1.0, "val/excess": 0.5, "val/excess/copy": 0.1},
        "switch-1": {"val/loss": 1.0, "moe/max_over_mean": 1.5, "grad_norm/head": 1.0},
    }
    for name, row in rows.items():
        folder = workplace / "outputs" / "runs" / name
        folder.mkdir(parents=True)
        sweep = "first" if name == "dense-1" else "second"
        (folder / "run.json").write_text(json.dumps({"state": "finished", "sweep": sweep}))
        tracking = {"_target_": "llm.tracking.wandb_mirror.Wandb", "project": "mine"}
        (folder / "config.yaml").write_text(yaml.safe_dump({"tracking": tracking}))
        MetricLog(folder).append(1, 10, row)
    for sweep, runs in {"first": ["dense-1"], "second": ["dense-1", "switch-1"]}.items():
        folder = workplace / "outputs" / "sweeps" / sweep
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text(json.dumps({"jobs": [{"run": run} for run in runs]}))


def written(*arguments: str) -> dict:
    assert runs_command(["dashboard", *arguments, "--to=view.json"]) == 0
    return json.loads(Path("view.json").read_text())


def panels(view: dict) -> dict[str, list[dict]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {s["name"]: [panel["config"] for panel in s["panels"]] for s in sections}


def test_it_shows_what_the_runs_of_a_sweep_have():
    view = written("second")
    assert view["project"] == "mine" and view["displayName"] == "second"
    shown = panels(view)
    assert list(shown) == ["Loss", "Excess by skill", "Balance", "Gradients"]
    axes = [p["xAxis"] for p in shown["Loss"] if p["metrics"] == ["val/loss"]]
    assert axes == ["tokens", "flops", "perf/seconds"]
    assert [p["metricRegex"] for p in shown["Excess by skill"]] == ["val/excess/.+"]
    assert [p["metrics"] for p in shown["Balance"]] == [["moe/max_over_mean"]]
    (chosen,) = view["spec"]["section"]["runSets"]
    told = json.dumps(chosen["filters"])
    assert '"group"' in told and '"second"' in told and '"dense-1"' in told
    assert "switch-1" not in told  # the group has it
    assert written("second") == view
    assert list(panels(written("outputs/sweeps/first/"))) == ["Loss", "Excess by skill"]
    assert written()["spec"]["section"]["runSets"][0]["filters"]["filters"] == []


def test_it_is_saved_where_there_is_a_login(monkeypatch, capsys):
    with pytest.raises(Refused, match=r"nobody is logged in.*wandb login.*--to="):
        runs_command(["dashboard", "second"])
    with pytest.raises(Refused, match="did you mean second"):
        runs_command(["dashboard", "secnd"])
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert runs_command(["dashboard", "second"]) == 0
    (saved,) = server.views
    assert (saved["entityName"], saved["projectName"]) == (ENTITY, "mine")
    assert "val/loss" in saved["spec"]
    assert f"{ENTITY}/mine" in capsys.readouterr().out
    assert "wandb" not in os.listdir()
    server.shutdown()
    server.server_close()
