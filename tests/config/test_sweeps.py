"""Sweeps: a mistake is refused before the first job; a job that fails leaves others alone."""

import json
import os
import subprocess
import sys
from dataclasses import MISSING
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config.choices import Choices, leaves
from llm.config.environment import invocation
from llm.config.errors import Failed, Interrupted
from llm.config.jobs import Jobs
from llm.config.outcome import SweepJob
from llm.config.overrides import read
from llm.runs.identity import config_hash
from tests.toy import TOY
from tests.typist import Typist, edited_conf

GRID = ["-m", "model=tiny", "moe=dense,switch", "moe.n_experts=2,4"]


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    return Typist(monkeypatch, capsys)


def outcomes() -> list[dict]:
    (file,) = Path("outputs/sweeps").glob("*/jobs.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_combination_is_a_job(type_line):
    ended = type_line(*GRID)
    assert ended.code == 0, ended.err
    assert [job.chosen["moe"] for job in type_line.jobs] == ["dense", "dense", "switch", "switch"]
    assert [job.config["moe"].get("n_experts") for job in type_line.jobs] == [None, None, 2, 4]
    assert len({job.sweep for job in type_line.jobs}) == 1
    assert [line["exit"] for line in outcomes()] == [0, 0, 0, 0]


def test_the_same_line_is_the_same_sweep_in_any_order(type_line):
    names = []
    for line in ("moe=dense seed=1,2", "seed=1,2 moe=dense", "seed=1,2 moe=switch"):
        assert type_line("-m", *line.split()).code == 0
        names.append(type_line.jobs[-1].sweep)
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("seed-")


@pytest.mark.parametrize(
    "line",
    [
        "optimizer.lr=0.001 moe.n_experts=8 moe=topk",
        "optimizer.lr=1E-03 train.budget='1200steps' moe=topk moe.n_experts=8.0",
        'optimizer.lr=1.0E-3 moe.n_experts=8 optimizer=muon moe.top_k=2 train.budget="1200steps"',
        "++optimizer.lr=1e-3 seed=0 moe.n_experts=8 model.n_kv_heads=null",
    ],
)
def test_order_and_spelling_make_no_other_experiment(type_line, line):
    plain = type_line.accepted("moe=topk", "moe.n_experts=8", "optimizer.lr=1e-3")
    other = type_line.accepted(*line.split())
    assert config_hash(plain.validated.identity) == config_hash(other.validated.identity)


def test_values_typed_one_by_one_are_the_option_that_has_them(type_line):
    tiny, nano = type_line.accepted("model=tiny"), type_line.accepted("model=nano")
    other = dict(leaves(nano.config["model"], "model"))
    typed = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in leaves(tiny.config["model"], "model")
        if other.get(key, MISSING) != value
    ]
    assert typed
    same = type_line.accepted("model=nano", *typed)
    assert config_hash(same.validated.identity) == config_hash(tiny.validated.identity)


#: Spellings of one value; None leaves out what is the default.
SPELLINGS: list[list[str | None]] = [
    ["optimizer.lr=1e-3", "optimizer.lr=0.001", "++optimizer.lr=1.0E-03", "optimizer.lr=10e-4"],
    ["moe=topk", "+moe=topk", None],
    ["moe.n_experts=8", "moe.n_experts=8.0", "+moe.n_experts=8"],
    ["train.budget=1200steps", "train.budget='1200steps'", 'train.budget="1200steps"', None],
    ["model.n_kv_heads=null", "model.n_kv_heads=NULL", None],
    ["train.overfit=false", "train.overfit=False", None],
    ["hardware.threads=1", "hardware.threads=2", None],  # says how, not what
    ["seed=0", None],
]


@pytest.mark.slow
@settings(max_examples=20)
@given(data=st.data())
def test_no_order_and_no_spelling_makes_another_experiment(data):
    spelt = [data.draw(st.sampled_from(spellings)) for spellings in SPELLINGS]
    line = data.draw(st.permutations([word for word in spelt if word is not None]))
    first = [spellings[0] for spellings in SPELLINGS]
    assert identity(line) == identity([word for word in first if word is not None])
    assert identity([*line, "train.clip_norm=2"]) != identity(line)


def identity(line: list[str]) -> str:
    """The config hash of a line, as the jobs of a sweep are composed."""
    choices = Choices()
    jobs = Jobs("llm.train", print, choices, read(line, choices, False), False)
    composer = jobs.composer()
    with composer.opened():
        (overrides,) = jobs.grid()
        made = jobs.job(0, overrides, composer)
    assert isinstance(made, SweepJob), made
    return config_hash(made.validated(choices).identity)


def test_an_edited_default_is_another_experiment(type_line, tmp_path):
    edited = edited_conf(tmp_path / "c", "model/nano.yaml", "d_ff: 176", "d_ff: 177")
    plain, other = type_line.accepted(), type_line.accepted("--config-path", str(edited))
    assert config_hash(plain.validated.identity) != config_hash(other.validated.identity)


def test_how_a_sweep_is_launched_does_not_name_it(type_line):
    assert type_line("-m", "seed=1,2").code == 0
    name = type_line.jobs[-1].sweep
    assert type_line("-m", "run.code_changed=accept", "seed=1,2", "hydra.verbose=false").code == 0
    assert type_line.jobs[-1].sweep == name


@pytest.mark.parametrize(
    ("typed", "named", "remedy"),
    [
        ("model=tiny,smal", "model=tiny,smal", "did you mean model=small?"),
        ("model.n_layrs=2,3", "model.n_layrs=2", "did you mean model.n_layers?"),
        ("model.n_layers=2,three", "model.n_layers=three", "is not a whole number"),
        ("moe.n_experts=2,-4", "moe.n_experts=-4", "must be at least 1"),
        ("moe=dense,switch moe.router.jiter=0,1", "jiter=0", "did you mean moe.router.jitter?"),
        ("optimizer/schedule=wsd,cosin", "wsd,cosin", "did you mean optimizer/schedule=cosine?"),
        ("seed=1,2 train.bugdet=3steps", "train.bugdet", "did you mean train.budget?"),
        ("train.budget=3steps,3stps", "train.budget=3stps", "2000steps"),
        ("seed=range(1,3) model.n_layers=x", "model.n_layers=x", "is not a whole number"),
        ("seed=range(3,3)", "seed=range(3,3)", "takes none"),
        ("model=glob(zz*)", "model=glob(zz*)", "takes none of base, gpt2, large"),
        ("hydra/launcher=jblib seed=1,2", "jblib", "there is no such config"),
    ],
)
def test_a_mistake_is_refused_before_the_first_job(type_line, typed, named, remedy):
    line = type_line.refused("-m", *typed.split())
    assert named in line
    assert remedy in line


def test_other_kinds_of_lists_are_sweeps(type_line):
    assert type_line("-m", "model=glob(mi*)", "seed=range(1,2)").code == 0
    chosen = [(job.chosen["model"], job.config["seed"]) for job in type_line.jobs]
    assert chosen == [("mini", 1), ("mistral", 1), ("mixtral", 1)]


def test_a_contradiction_in_combination_is_refused_by_its_job(type_line):
    ended = type_line("-m", "moe=switch,dense", "moe.top_k=1,8")
    assert ended.code == 2
    lines = [line for line in ended.err.splitlines() if line.startswith("llm.train: job")]
    assert lines == [
        "llm.train: job 1 (moe=switch moe.top_k=8): moe.top_k=8: is 8, more than n_experts=4"
    ]
    assert "of 4 jobs 1 refused, 0 failed" in ended.err
    (sweep,) = Path("outputs/sweeps").iterdir()
    assert ended.err.splitlines()[-1] == f"what was learnt: {invocation('llm.report', str(sweep))}"
    assert [line["exit"] for line in outcomes()] == [0, 2, 0, 0]
    assert len(type_line.jobs) == 3


def test_a_failure_makes_the_code_1_and_the_others_run(type_line):
    done = []

    def task(job):
        seed = job.config["seed"]
        done.append(seed)
        if seed == 1:
            raise Failed("the loss became nan")
        if seed == 2:
            raise ZeroDivisionError("a bug")

    ended = type_line("-m", "seed=0,1,2", task=task)
    assert ended.code == 1
    assert done == [0, 1, 2]
    assert "llm.train: job 1 (seed=1): the loss became nan" in ended.err.splitlines()
    assert ended.err.count("Traceback") == 1
    assert "of 3 jobs 0 refused, 2 failed" in ended.err
    # The same line again counts its own jobs only.
    assert type_line("-m", "seed=0,1,2", task=lambda job: None).code == 0


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(2), 130), (Interrupted(15), 143)]
)
def test_an_interrupt_ends_the_sweep(type_line, stop, code):
    begun = []

    def task(job):
        begun.append(job)
        raise stop

    assert type_line("-m", "seed=0,1", task=task).code == code
    assert len(begun) == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("joblib") is None, reason="needs hydra-joblib-launcher")
def test_jobs_run_in_processes_of_joblib(toy_text):
    typed = [*TOY, "moe=dense,switch", "moe.top_k=1,9", "train.budget=2steps"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    ended = subprocess.run(
        [sys.executable, "-m", "llm.train", "-m", *typed, *launcher],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 2, ended.stderr
    assert "job 3 (moe=switch moe.top_k=9): moe.top_k=9: is 9, more than" in ended.stderr
    assert sorted(line["exit"] for line in outcomes()) == [0, 0, 0, 2]
    assert len(list(Path("outputs/runs").glob("*/run.json"))) == 2
