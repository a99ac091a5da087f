"""A search by Optuna with our launcher, and hopeless jobs pruned, in whole sweeps."""

import json
import math
from pathlib import Path

import pytest

from llm.config.errors import Refused
from llm.sweep import launch, process
from llm.sweep.search import study

pytestmark = pytest.mark.slow


def jobs_now(sweep: Path) -> list[dict]:
    return json.loads((sweep / "sweep.json").read_text())["jobs"]


def test_a_search_goes_on_by_the_same_line_and_ends(llm_train, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    line = ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))"]
    line += ["moe=switch", "moe.n_experts=interval(2,4)", "train.budget=4steps"]
    ended = llm_train(*line, "hydra.sweeper.n_trials=2")
    assert ended.code == 0, ended.err
    assert "best of 2 trials: val/loss" in ended.out
    first = jobs_now(ended.folder)
    assert [job["state"] for job in first] == ["finished"] * 2

    again = llm_train(*line, "hydra.sweeper.n_trials=3")
    assert again.folder == ended.folder
    jobs = jobs_now(ended.folder)
    assert jobs[:2] == first and len(jobs) == 3
    drawn = [dict(text.split("=", 1) for text in job["overrides"]) for job in jobs]
    assert all(1e-4 <= float(values["optimizer.lr"]) <= 1e-1 for values in drawn)
    assert all(values["moe.n_experts"] in ("2", "3", "4") for values in drawn)
    assert len({job["run"] for job in jobs}) == 3

    def no_more(*arguments):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(process, "start", no_more)
    assert "best of 3 trials" in llm_train(*line, "hydra.sweeper.n_trials=3").out


def test_what_a_killed_search_left_comes_first(tmp_path):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    between = optuna.distributions.UniformDistribution(0.0, 1.0)
    sweeper = {"n_trials": 5, "direction": "minimize", "storage": None, "study_name": None}
    sweeper["sampler"] = {"seed": None}

    def load():
        return optuna.load_study("toy", f"sqlite:///{tmp_path / 'search.db'}")

    with study(tmp_path, "toy", sweeper, False) as told:
        assert "hydra.sweeper.n_trials=5" in told
        with pytest.raises(Refused, match="running already"):
            study(tmp_path, "toy", sweeper, False).__enter__()
        trials = [load().ask() for _ in range(3)]
        drawn = [trial._suggest("x", between) for trial in trials]
        load().tell(trials[0], 1.5)
        load().tell(trials[1], state=optuna.trial.TrialState.FAIL)
        (tmp_path / "jobs.jsonl").write_text("")
    for _ in range(2):  # nothing is queued twice
        with study(tmp_path, "toy", sweeper, False) as told:
            assert "hydra.sweeper.n_trials=4" in told
    redone = [load().ask() for _ in range(3)]
    assert [trial._suggest("x", between) for trial in redone[:2]] == drawn[1:]
    assert redone[2]._suggest("x", between) not in drawn
    load().tell(redone[0], math.inf)  # a job that would end badly again
    with study(tmp_path, "toy", sweeper, True) as told:
        assert "hydra.sweeper.n_trials=5" in told
    assert (tmp_path / "search-0.db").exists()


def test_hopeless_jobs_are_pruned_and_stay_so(llm_train, monkeypatch):
    monkeypatch.setattr(launch, "_LOOK", 0.1)
    rates = ["1e-2", "2e-2", "3e-2", "4e-2", "1e-6"]
    line = ["moe=dense", "optimizer=adamw", "train.eval_every=10", "train.checkpoint_every=1000"]
    line += ["train.budget=200steps"]
    sweep = ["-m", *line, f"optimizer.lr={','.join(rates)}"]
    sweep += ["hydra.launcher.jobs=1", "hydra.launcher.prune=median"]
    ended = llm_train(*sweep)
    assert ended.code == 0, ended.err
    jobs = jobs_now(ended.folder)
    assert jobs[-1]["state"] == "pruned"
    assert {job["state"] for job in jobs[:-1]} == {"finished"}
    assert "pruned: val/bpb" in ended.err
    run = Path("outputs/runs") / jobs[-1]["run"] / "run.json"
    facts = json.loads(run.read_text())
    assert facts["state"] == "pruned" and "the median of 4 others" in facts["reason"]
    told = [json.loads(text) for text in (ended.folder / "jobs.jsonl").read_text().splitlines()]
    assert told[-1]["pruned"] and told[-1]["val_loss"] > 1

    before = run.stat().st_mtime_ns
    again = llm_train(*sweep)
    assert "1 pruned" in again.err and run.stat().st_mtime_ns == before
    alone = llm_train(*line, "optimizer.lr=1e-6")
    assert alone.code == 0, alone.err
    assert "going on with" in alone.err and json.loads(run.read_text())["state"] == "finished"
    llm_train(*sweep)
    assert {job["state"] for job in jobs_now(ended.folder)} == {"finished"}
