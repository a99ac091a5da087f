"""Studies: an overlay over the whole config, and what it sweeps, as if it had been typed."""

from pathlib import Path

import pytest

from llm.config.choices import Choices
from llm.config.jobs import Jobs
from llm.config.overrides import read
from llm.config.validate import Validated
from llm.sweep.snapshot import freeze
from tests.typist import Typist, own_option

STUDY = """\
# @package _global_
# Mine.
defaults:
  - override /model: tiny
  - override /moe: switch
  - _self_
model:
  d_ff: 96
hydra:
  sweeper:
    params:
      seed: 1,2
      model.n_layers: 3
    lines:
      - moe.n_experts=2,4
      - moe=dense model.n_layers=2
"""


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    own_option(workplace / "mine", "experiments", "width", STUDY)
    return Typist(monkeypatch, capsys)


def made(*line: str) -> list[Validated]:
    """The jobs of a sweep."""
    choices = Choices(None, [Path("mine")])
    jobs = Jobs("llm.train", print, choices, read(list(line), choices, True), True)
    composer = jobs.composer()
    with composer.opened():
        return [jobs.job(0, overrides, composer).validated(choices) for overrides in jobs.grid()]


def sizes(jobs) -> list[tuple]:
    return [
        (job.config["moe"].get("n_experts"), job.config["model"]["n_layers"], job.config["seed"])
        for job in jobs
    ]


def test_a_study_sweeps_its_lines_with_its_grid(type_line):
    jobs = made("experiments=width")
    assert sizes(jobs) == [
        *[(2, 3, 1), (2, 3, 2), (4, 3, 1), (4, 3, 2)],
        *[(None, 2, 1), (None, 2, 2)],
    ]
    assert {job.config["model"]["d_ff"] for job in jobs} == {96}
    assert {job.chosen["model"] for job in jobs} == {"tiny"}


def test_what_is_typed_wins_over_the_study(type_line):
    line = ["model=nano", "model.d_ff=64", "moe.n_experts=8", "seed=5"]
    ended = type_line("-m", "--config-dir=mine", "experiments=width", *line)
    assert ended.code == 0, ended.err
    jobs = type_line.jobs
    assert sizes(jobs) == [(8, 3, 5), (None, 2, 5)]
    assert {job.config["model"]["d_ff"] for job in jobs} == {64}
    assert {job.chosen["model"] for job in jobs} == {"nano"}
    assert jobs[0].sweep.startswith("width-")


def test_without_m_a_study_is_one_run(type_line):
    job = type_line.accepted("--config-dir=mine", "experiments=width", "seed=3")
    assert (job.config["seed"], job.config["model"]["d_ff"]) == (3, 96)
    assert job.sweep is None


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("experiments=balnce", "did you mean experiments=balance?"),
        ("experiments=balance,experts", "experiments=balance,experts: one study at a time"),
        ("experiment=balance", "did you mean experiments?"),
        ("experiments=width model.n_layrs=2", "did you mean model.n_layers?"),
        ("seed=1,2 hydra.sweeper.params.seed=3", "hydra.sweeper.params"),
    ],
)
def test_a_mistake_is_refused(type_line, typed, named):
    assert named in type_line.refused("-m", "--config-dir=mine", *typed.split())


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("moe.n_experts=2,4", "moe.n_expert=2,4", "did you mean moe.n_experts?"),
        ("moe=dense model", "moe=dens model", "did you mean moe=dense?"),
        ("seed: 1,2", "plugins: [os]", "plugins=['os']: cannot be swept"),
    ],
)
def test_a_mistake_in_a_study_is_refused(type_line, workplace, before, after, named):
    own_option(workplace / "mine", "experiments", "width", STUDY.replace(before, after))
    line = type_line.refused("-m", "--config-dir=mine", "experiments=width")
    assert named in line


def test_a_snapshot_freezes_the_study(type_line, workplace):
    choices = Choices(None, [workplace / "mine"])
    typed = read(["experiments=width", "hydra/launcher=basic"], choices, True)
    jobs = Jobs("llm.train", print, choices, typed, True)
    jobs.snapshot = freeze(Path("sweep"), choices, [], "refuse", "resume")
    file = workplace / "mine" / "experiments" / "width.yaml"
    file.write_text(file.read_text().replace("seed: 1,2", "seed: 1,2,3"))
    assert len(list(jobs.frozen().grid())) == 6
    assert len(list(Jobs("llm.train", print, choices, typed, True).grid())) == 9


@pytest.mark.parametrize("name", Choices().groups["experiments"])
def test_our_studies_can_be_composed(workplace, name):
    choices = Choices()
    jobs = Jobs("llm.train", print, choices, read([f"experiments={name}"], choices, True), True)
    jobs.check_sweep()
    assert jobs.swept
