"""`llm.plan`: what a sweep would do and cost, without PyTorch."""

import json
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import account_for, build_model
from llm.config.choices import Choices
from llm.config.stand_in import installed
from llm.plan.__main__ import run
from llm.plan.history import History, _affine, _paces, machine_name, signature
from tests.toy import TOY

CHOICES = Choices()

GROUPS = ("model", "moe", "model/position", "model/style")


@pytest.fixture(scope="module")
def presets():
    """Every option of every group of the model at least once, and keys that shape it."""
    found = {}
    options = [CHOICES.groups[group] for group in GROUPS]
    lines = [
        [f"{group}={given[i % len(given)]}" for group, given in zip(GROUPS, options, strict=True)]
        for i in range(max(map(len, options)))
    ]
    lines += [
        ["model=nano", "model.n_kv_heads=2", "moe=switch", "moe.n_experts=8", "model.bias=true"],
        ["model=nano", "model.window=[16,null]", "model.n_sinks=2", "model.moe_every=2"],
        ["model=nano", "model.parametrization=mup", "moe=topk", "moe.balance=bias"],
    ]
    with initialize_config_dir(str(CHOICES.conf), version_base="1.3"):
        for line in lines:
            config = OmegaConf.to_container(compose("train", line), resolve=True)
            found[" ".join(line)] = config
    return found


def test_models_are_counted_without_pytorch_as_with_it(presets):
    with installed():
        from llm.plan.cost import Costs

        costs = Costs()
        counted = {name: vars(costs.account(c, 300)) for name, c in presets.items()}
    built = {
        name: vars(account_for(config, build_model(config, 300, device="meta")))
        for name, config in presets.items()
    }
    assert counted == built


def plan(*line: str) -> tuple[list[list[str]], str]:
    """Rows of the table, cells between two spaces, and all that was printed."""
    code = (
        "import sys, runpy; sys.argv[0] = 'llm.plan'\n"
        "try: runpy.run_module('llm.plan', run_name='__main__', alter_sys=True)\n"
        "finally: print('torch is', type(sys.modules.get('torch')).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch is _Stand" in done.stdout
    return rows_of(done.stdout), done.stdout


def rows_of(told: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in row.split("  ") if cell.strip()]
        for row in told.splitlines()[2:]
        if row[:3].strip().isdigit()
    ]


def test_a_plan_knows_duplicates_and_what_is_done_already(llm_train):
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


def test_what_a_job_would_refuse_the_plan_shows(toy_text, capsys):
    assert run([*TOY, "moe=topk", "moe.top_k=1,2,9"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows[0][2].startswith("refused: moe.router.renormalize: with top_k=1")
    assert rows[1][2] == "new"
    assert rows[2][2] == "refused: moe.top_k=9: is 9, more than n_experts=4"


def test_what_only_the_job_can_know_is_unknown(toy_text, capsys):
    assert run([*TOY, "model.init_from=gone,null", "train.budget=2steps"]) == 0
    told = capsys.readouterr().out
    rows = rows_of(told)
    assert rows[0][2:] == ["unknown", *["?"] * 7]
    assert rows[1][2] == "new" and "?" not in rows[1][3:8]
    assert "1 of them tell only when they run" in told


@pytest.mark.slow
def test_five_hundred_jobs_in_twenty_seconds(toy_text):
    begun = time.monotonic()
    line = ["model=tiny,mini,small,nano,base", "moe=dense,switch", "moe.n_experts=2,4,8,16,32"]
    rows, _ = plan(*line, "optimizer.lr=1e-3,2e-3", "seed=1,2,3,4,5", "hardware.precision=fp32")
    assert len(rows) == 500
    assert time.monotonic() - begun < 60  # 20 on a machine that does nothing else


@pytest.mark.slow
def test_of_a_search_the_plan_shows_examples_and_says_so(toy_text):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    line = ["hydra/sweeper=optuna", "moe=dense,switch", "optimizer.lr=interval(0.001,1)"]
    rows, told = plan(*TOY, *line)
    assert [row[1] for row in rows] == [
        "moe=dense optimizer.lr=0.001",
        "moe=switch optimizer.lr=0.001",
        "moe=dense optimizer.lr=1",
    ]
    assert "there is no grid to list" in told and "a trial costs 13.4M to 13.6M FLOPs" in told


def test_time_is_measured_where_it_can_be_and_scaled_elsewhere(trained):
    folder = trained("moe=dense").folder
    facts = json.loads((folder / "run.json").read_text())
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    history = History(folder.parent.parent)
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
