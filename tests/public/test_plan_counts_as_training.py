"""What a plugin is made of counts in a plan, and in a dense partner's width, as in training."""

import pytest
import yaml

from llm.build import account_for, build_model
from llm.config.entry import choices_of, read_flags
from llm.config.jobs import Jobs
from llm.config.overrides import read
from llm.plan.calibrate import plan
from llm.plan.estimate import Planned
from tests.toy import TOY
from tests.typist import Typist, forget_modules, own_option

CODE = """
import torch
from torch import nn

from llm.config.types import PositiveInt
from llm.layers.roles import declare
from llm.model.position import Position


class Woven(Position):
    '''Modules that the platform does not know, nested, one of them used twice.'''

    def __init__(self, geometry, *, width: PositiveInt):
        super().__init__(geometry)
        twice = nn.Linear(geometry.d_model, geometry.d_model)
        self.parts = nn.Sequential(twice, nn.Tanh(), nn.ModuleDict({"again": twice})["again"])
        self.mix = nn.Conv1d(geometry.d_model, geometry.d_model, width, padding="same")
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(3).cumsum(0))])
        for parameter in self.parameters():
            declare(parameter, "matrix" if parameter.ndim > 1 else "bias")

    def embed(self, x_BTD, context):
        mixed = self.mix(self.parts(x_BTD).mT).mT
        return x_BTD + mixed * self.scale[0].sum()
"""
LINE = ["--config-dir", "mine", "plugins=[woven_parts]", "model/position=woven", "moe=switch"]


@pytest.fixture
def type_line(toy_text, monkeypatch, capsys):
    forget_modules("woven_parts")
    (toy_text.parent / "woven_parts.py").write_text(CODE)
    monkeypatch.syspath_prepend(toy_text.parent)
    node = "# Mine.\n_target_: woven_parts.Woven\nwidth: 3\n"
    own_option(toy_text.parent / "mine", "model/position", "woven", node)
    return Typist(monkeypatch, capsys)


def planned(line: list[str]) -> Planned:
    flags = read_flags(line)
    choices = choices_of(flags)
    (job,) = plan(
        Jobs("llm.plan", print, choices, read(flags.overrides, choices, True), True), False
    )
    return job


def same_as_trained(job: Planned, config: dict) -> bool:
    costs = account_for(config, build_model(config, 257, config["plugins"]))
    counted = (job.params_total, job.params_active, job.flops_per_token)
    return counted == (costs.params_total, costs.params_active, costs.flops_per_token)


@pytest.mark.parametrize("width", [3, 5])
def test_modules_of_a_plugin_are_counted(type_line, width):
    line = [*TOY, *LINE, f"model.position.width={width}"]
    job = planned(line)
    assert same_as_trained(job, type_line.accepted(*line).config)
    without = planned([*TOY, "moe=switch", "model/position=none"])
    assert job.params_total - without.params_total == 16 * 16 * (width + 1) + 16 + 16 + 3


@pytest.mark.parametrize("by", ["active_flops", "total_params"])
def test_compare_takes_what_training_takes(type_line, by):
    line = [*TOY, *LINE, f"compare={by}"]
    trained = type_line.accepted(*line).config
    assert "n_experts" not in trained["moe"]
    assert same_as_trained(planned(line), trained)
    shown = yaml.safe_load(type_line("--cfg", "job", *line).out)["model"]
    assert shown["d_ff"] == trained["model"]["d_ff"]
