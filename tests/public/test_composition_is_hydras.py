"""Whatever is typed, a job has the config that plain Hydra composes, wherever both accept the line.

Mappings merge, so what one job of a sweep puts into one must not be there in the next.
"""

import random
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from llm.config.choices import Choices, read_yaml
from llm.config.compose import plain
from llm.config.errors import Refused
from llm.config.jobs import Jobs
from llm.config.outcome import SweepJob
from llm.config.overrides import read
from tests.typist import own_option

STUDY = """\
# @package _global_
defaults:
  - override /model: tiny
  - _self_
optimizer:
  lr_factors: {head: 0.5, router: 2}
hydra:
  sweeper:
    params:
      seed: 1,2
      optimizer.lr_factors: "{gain: 3},{head: 4}"
    lines:
      - moe.top_k=1,2
      - moe=dense optimizer.lr_factors.head=7
"""
OPTIONS = ["", "experiments=mine", "data=mixture optimizer/schedule=wsd", "moe=dense,switch"]
#: Keys to values; of several a sweep is made.
VALUES = {
    "seed": ["3", "4", "5"],
    "outputs": ["elsewhere", "'a b'"],
    "optimizer.lr": ["1e-3", "auto"],
    "optimizer.betas": ["[0.8,0.9]", "[0.9,null]", "null"],
    "optimizer.lr_factors": ["{head: 0.25}", "{gain: 2}", "{}", "{head: {a: [1,2]}}", "null"],
    "optimizer.lr_factors.head": ["2", "3", "null", "${optimizer.eps}", "{b: 1}"],
    "optimizer.lr_factors.gain": ["1", "[1,{c: 2}]"],
    "moe.router": ["{jitter: 0.1}", "{jitter: 0.2, own: {x: 1}}", "{}", "null", "3"],
    "moe.router.jitter": ["0.3", "0.4"],
    "moe.n_experts": ["2", "8"],
    "model.position": ["{base: 5}", "{}"],
    "model.position.base": ["100", "1000"],
    "model.window": ["[16,null]", "[]", "8"],
    "train": ["{batch_size: 4, eval_every: 3}", "{}"],
    "train.budget": ["20steps", "'3 epochs'", "${train.eval_every}steps"],
    "data.parts.mine": ["{weight: 1}", "null", "{weight: 2, corpus: {n: 1}}"],
    "data.parts.mine.weight": ["3", "4"],
    "own.key": ["1", "{deep: {er: 2}}", "{}"],
}
#: Those that a line sets without a `+`.
EXISTING = {"seed", "outputs", "optimizer.lr", "optimizer.betas", "train", "train.budget"}
DELETIONS = ["optimizer.lr_factors.head", "optimizer.lr_factors", "train.clip_norm=1.0"]
DELETIONS += ["moe.router.jitter", "data.parts.mine", "optimizer.betas"]


def line_of(draw: random.Random) -> tuple[list[str], bool]:
    """Overrides, and whether they are a sweep."""
    words = draw.choice(OPTIONS).split()
    is_sweep = draw.random() < 0.5 or "moe=dense,switch" in words
    keys = draw.choices(list(VALUES), k=draw.randint(1, 4))
    if draw.random() < 0.6:  # places that meet
        section = draw.choice(["optimizer.lr_factors", "moe.router", "data.parts"])
        keys += draw.sample([key for key in VALUES if key.startswith(section)], 2)
    for key in keys:
        several = is_sweep and draw.random() < 0.5
        values = draw.sample(VALUES[key], 2 if several else 1)
        words.append(f"{'' if key in EXISTING else '++'}{key}={','.join(values)}")
    if draw.random() < 0.2:
        words.append(f"~{draw.choice(DELETIONS)}")
    if draw.random() < 0.3:
        draw.shuffle(words)
    return words, is_sweep


def key_of(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def hydras_jobs(words: list[str], is_sweep: bool, choices: Choices) -> list[list[str]]:
    """What Hydra's own sweeper makes of a line, or of each line of the study in it."""
    if not is_sweep:
        return [words]
    sweeper = read_yaml(choices.files["experiments", "mine"])["hydra"]["sweeper"]
    params, lines = [f"{key}={value}" for key, value in sweeper["params"].items()], sweeper["lines"]
    if "experiments=mine" not in words:
        params, lines = [], [""]
    typed, made = {key_of(word) for word in words}, []
    for line in lines:
        of_study = [word for word in [*params, *line.split()] if key_of(word) not in typed]
        parsed = OverridesParser.create().parse_overrides([*of_study, *words])
        made += BasicSweeper.split_arguments(parsed, None)[0]
    return made


def normal(job: list[str]) -> frozenset[tuple[str, str]]:
    """A job's overrides whatever their prefixes, order and spelling."""
    return frozenset(map(setting, job))


@cache
def setting(override: str) -> tuple[str, str]:
    parsed = OverridesParser.create().parse_override(override)
    return parsed.get_key_element().lstrip("+"), repr(parsed.value())


class Hydras:
    """Plain Hydra's configs; with `remember` it chooses files once for each set of options."""

    def __init__(self, choices: Choices, remember: bool):
        self.groups, self.remember = choices.groups, remember
        search = f"hydra.searchpath=[{choices.others[0]}]"
        self.chosen = cache(lambda *given: compose("train", [*given, search]))

    def config(self, job: list[str]) -> dict:
        if not self.remember:
            return plain(self.chosen(*job))
        values = [text for text in job if key_of(text) not in self.groups]
        config = self.chosen(*(text for text in job if text not in values)).copy()
        parsed = OverridesParser.create().parse_overrides(values)
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
        return plain(config)


def compared(draw: random.Random, judge: Hydras, choices: Choices, composers: dict) -> int:
    """Compare some jobs of a random line; how many."""
    words, is_sweep = line_of(draw)
    try:
        jobs = Jobs("llm.train", print, choices, read(words, choices, is_sweep), is_sweep)
        theirs = {normal(job): job for job in hydras_jobs(words, is_sweep, choices)}
        ours = list(jobs.grid())
    except (Refused, HydraException):
        return 0
    assert {normal(job) for job in ours} == theirs.keys()
    composer, count = jobs.composer(), 0
    composer._of_options = composers  # of all lines, so that each set is composed once
    for job in draw.sample(ours, min(2, len(ours))):
        made = jobs.job(0, job, composer)
        try:
            wanted = judge.config(theirs[normal(job)])
        except (HydraException, OmegaConfBaseException):
            continue
        if isinstance(made, SweepJob):
            assert made.raw == wanted, words
            count += 1
    return count


@pytest.mark.parametrize(
    ("lines", "remember"), [(110, True), pytest.param(150, False, marks=pytest.mark.slow)]
)
def test_a_random_line_composes_to_what_hydra_composes(workplace, lines, remember):
    choices = Choices(None, [own_option(workplace / "mine", "experiments", "mine", STUDY)])
    draw, composers = random.Random(lines), {}
    with initialize_config_dir(str(choices.conf), version_base="1.3"):
        judge = Hydras(choices, remember)
        counts = [compared(draw, judge, choices, composers) for _ in range(lines)]
    assert sum(count > 0 for count in counts) > 0.8 * lines


def factors(words: list[str], choices: Choices) -> list[dict]:
    """`optimizer.lr_factors` of each job of a sweep."""
    jobs = Jobs("llm.train", print, choices, read(words, choices, True), True)
    composer = jobs.composer()
    with composer.opened():
        made = [jobs.job(i, job, composer) for i, job in enumerate(jobs.grid())]
    assert all(isinstance(job, SweepJob) for job in made), made
    return [job.validated(choices).config["optimizer"]["lr_factors"] for job in made]


def test_each_job_of_a_sweep_is_composed_from_the_defaults(workplace):
    swept = ["moe=dense", "optimizer.lr_factors={head: 0.25},{gain: 2},{}"]
    assert factors(swept, Choices()) == [{"head": 0.25}, {"gain": 2.0}, {}]


def test_what_a_study_puts_into_a_mapping_is_left_out_by_a_tilde(workplace):
    study = "# @package _global_\noptimizer: {lr_factors: {head: 0.5}}\n"
    choices = Choices(None, [own_option(workplace / "mine", "experiments", "mine", study)])
    line = ["experiments=mine", "optimizer.lr_factors={}"]
    assert factors(line, choices) == [{"head": 0.5}]  # Hydra merges mappings
    assert factors([*line, "~optimizer.lr_factors.head"], choices) == [{}]


def test_an_option_of_a_part_can_be_swept(workplace):
    line = ["data=mixture", "data/parts/mine/corpus=tinytown,markov", "data.parts.mine.weight=1"]
    choices = Choices()
    jobs = Jobs("llm.train", print, choices, read(line, choices, True), True)
    composer = jobs.composer()
    with composer.opened():
        made = [jobs.job(0, job, composer) for job in jobs.grid()]
    corpora = [job.raw["data"]["parts"]["mine"]["corpus"]["_target_"] for job in made]
    assert [name.rpartition(".")[2] for name in corpora] == ["Tinytown", "Markov"]
    assert [job.swept for job in made] == [
        f"data/parts/mine/corpus={name}" for name in ("tinytown", "markov")
    ]
