"""`llm.plan`: what a sweep would do and cost."""

import json
import re
import time

import pytest
from omegaconf import OmegaConf

from llm.plan.__main__ import run
from llm.plan.history import History, _affine, _paces, machine_name, signature
from tests.toy import TOY


@pytest.fixture
def plan(capsys):
    """`plan(*line)`: rows of the table, cells between two spaces, and all that was printed."""

    def command(*line: str) -> tuple[list[list[str]], str]:
        capsys.readouterr()
        assert run(list(line)) == 0
        told = capsys.readouterr().out
        rows = [row for row in told.splitlines() if re.match(r" *\d+  ", row)]
        return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows], told

    return command


def test_a_plan_knows_duplicates_and_what_is_done_already(llm_train, plan):
    llm_train("moe=dense", "seed=1")
    rows, told = plan(*TOY, "moe=dense,switch", "moe.n_experts=2,4", "seed=1,2")
    assert [row[2] for row in rows] == [
        *("finished", "new", "the run of job 0", "the run of job 1"),
        *["new"] * 4,
    ]
    assert rows[0][3:5] == ["8,848", "8,848"]
    assert "8 jobs, 6 different runs, 1 finished already" in told
    assert "unequal" not in told
    line = ["moe=switch,topk", "compare=null,active_flops", "seed=1", "model.d_ff=32"]
    rows, told = plan(*TOY, *line)
    assert rows[1][3] == rows[1][4] != rows[0][3]  # a dense partner uses all of its parameters
    assert "note: compare=active_flops makes active FLOPs a token equal" in told
    assert "note: one seed an arm" in told
    assert "active FLOPs of training: 1." in told


def test_what_a_job_would_refuse_the_plan_shows(toy_text, plan):
    rows, _ = plan(*TOY, "moe=topk", "moe.top_k=1,2,9")
    assert rows[0][2].startswith("refused: moe.router.renormalize: with top_k=1")
    assert rows[1][2] == "new"
    assert rows[2][2] == "refused: moe.top_k=9: is 9, more than n_experts=4"


def test_what_only_the_job_can_know_is_unknown(toy_text, plan):
    rows, told = plan(*TOY, "model.init_from=gone,null", "train.budget=2steps")
    assert rows[0][2:] == ["unknown", *["?"] * 7]
    assert rows[1][2] == "new" and "?" not in rows[1][3:8]
    assert "1 of them tell only when they run" in told


@pytest.mark.slow
def test_five_hundred_jobs_in_twenty_seconds(toy_text, plan):
    begun = time.monotonic()
    line = ["model=tiny,mini,small,nano,base", "moe=dense,switch", "moe.n_experts=2,4,8,16,32"]
    rows, _ = plan(*line, "optimizer.lr=1e-3,2e-3", "seed=1,2,3,4,5", "hardware.precision=fp32")
    assert len(rows) == 500
    assert time.monotonic() - begun < 60  # 20 on a machine that does nothing else


@pytest.mark.slow
def test_of_a_search_the_plan_shows_examples_and_says_so(toy_text, plan):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    line = ["hydra/sweeper=optuna", "moe=dense,switch", "optimizer.lr=interval(0.001,1)"]
    rows, told = plan(*TOY, *line)
    assert [row[1] for row in rows] == [
        "moe=dense optimizer.lr=0.001",
        "moe=switch optimizer.lr=0.001",
        "moe=dense optimizer.lr=1",
    ]
    assert "there is no grid to list" in told and "a trial costs 13.4M to 13.6M FLOPs" in told


def test_time_is_measured_where_it_can_be_and_scaled_elsewhere(tmp_path, llm_train):
    folder = llm_train("moe=dense").folder
    facts = json.loads((folder / "run.json").read_text())
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    history = History.under(folder.parent.parent)
    mark, machine = signature(config, facts["vocab_size"]), machine_name(facts)
    same = history.pace(mark, machine, facts["flops_per_token"], 64)
    assert same.basis == "measured" and same.token > 0 and same.evaluation > 0
    twice = history.pace("another", machine, 2 * facts["flops_per_token"], 64)
    assert twice.basis == "scaled"
    assert twice.token == pytest.approx(2 * same.token)
    assert history.pace(mark, "elsewhere", 1.0, 64).basis == "unknown"
    assert history.memory(mark, machine, 1.0).value == facts["peak_memory"]


def test_seconds_are_affine_in_operations():
    points = [(x, 3.0 + 2.0 * x) for x in (1.0, 10.0, 100.0)]
    assert _affine(points, 50.0) == pytest.approx(103.0)
    assert _affine(points[:1], 2.0) == pytest.approx(10.0)
    assert _affine([(1.0, 5.0), (2.0, 5.0), (4.0, 1.0)], 3.0) > 0


def test_steps_and_evaluations_are_told_apart():
    rows, now = [], 0.0
    for step in range(1, 13):
        now += 2.0  # seconds of a step of 10 tokens, and then those of an evaluation
        rows.append({"tokens": 10 * step, "perf/seconds": now, "perf/tokens_per_second": 5.0})
        if step % 5 == 0 or step == 12:
            rows[-1]["perf/evaluation"] = 3.0
            now += 9.0 if step == 5 else 4.0  # the first loads what draws
    assert _paces(rows) == (pytest.approx(0.2), pytest.approx(4.0))
    assert _paces(rows[:4]) == (pytest.approx(0.2), None)
    again = [*rows[:8], *rows[6:]]  # killed, and two steps taken twice
    assert _paces(again)[0] == pytest.approx(0.2)
