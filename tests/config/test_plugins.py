"""A router, a position and a corpus from a package of the user's own, without touching ours."""

import pytest

from llm.train import train
from tests.toy import TOY
from tests.typist import Typist, forget_modules, own_option

CODE = '''
from typing import Annotated

import torch
from torch import nn

from llm.config.errors import Refused
from llm.config.types import UNRECORDED, PositiveFloat
from llm.data.corpus import Document
from llm.layers.roles import declare
from llm.model.position import Position
from llm.moe.router import Routing


class Uniform(nn.Module):
    """A router that sends tokens round."""

    def __init__(self, d_model, n_experts, top_k, *, scale: PositiveFloat):
        super().__init__()
        if scale > 100:
            raise Refused("is too much", "scale")
        self.weight_ED = declare(nn.Parameter(torch.randn(n_experts, d_model) * scale), "router")
        self.top_k = top_k

    def forward(self, x_ND, tokens_N, bias_E=None):
        logits_NE = x_ND.float() @ self.weight_ED.T
        probs_NE = logits_NE.softmax(-1)
        weights_NK, experts_NK = probs_NE.topk(self.top_k)
        return Routing(experts_NK, weights_NK, probs_NE, logits_NE)


class Ramp(Position):
    def __init__(self, geometry, *, slope: PositiveFloat = 0.1):
        super().__init__(geometry)
        self.slope = slope

    def embed(self, x_BTD, context):
        return x_BTD + self.slope * context.position_T[:, None]


class Counting:
    pieces = None
    dialogue = None

    def __init__(self, *, documents: int, note: Annotated[str, UNRECORDED] = ""):
        self.n = documents

    def describe(self):
        return {"corpus": "counting", "documents": self.n}

    def documents(self):
        for i in range(self.n):
            yield Document(" ".join(map(str, range(i, i + 50))), "val" if i % 4 == 0 else "train")
'''
PLUGINS = "plugins=[my_parts]"


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    """With my_parts.py importable, and its options in mine/."""
    forget_modules("my_parts")
    (workplace / "my_parts.py").write_text(CODE)
    monkeypatch.syspath_prepend(workplace)
    router = "# Mine.\ndefaults: [switch]\nrouter:\n  _target_: my_parts.Uniform\n  scale: 0.1\n"
    router += "  renormalize: 5\n"
    mine = own_option(workplace / "mine", "model/position", "ramp", "_target_: my_parts.Ramp\n")
    own_option(mine, "data", "counting", "_target_: my_parts.Counting\ndocuments: 20\n")
    own_option(mine, "moe", "uniform", router)
    own_option(mine, "moe", "bare", "_target_: my_parts.Uniform\nscale: 1\n")
    return Typist(monkeypatch, capsys)


OWN = ["--config-dir", "mine", "model/position=ramp", "data=counting"]
ROUTER = ["moe.router._target_=my_parts.Uniform", "++moe.router.scale=0.1"]


def test_parts_of_ones_own_train(type_line):
    toy = [o for o in TOY if not o.startswith("data")]
    ended = type_line(*toy, *OWN, *ROUTER, PLUGINS, task=train)
    assert ended.code == 0, ended.err
    assert "counting" in ended.folder.name
    assert (ended.folder / "checkpoints").is_dir()


def test_they_are_refused_unless_the_command_lists_their_package(type_line):
    line = type_line.refused(*OWN)
    assert "my_parts.Ramp lies outside llm" in line
    assert "'plugins=[my_parts]'" in line
    assert PLUGINS in type_line.refused(*ROUTER)


def test_a_file_cannot_list_it(type_line, workplace):
    text = "# @package _global_\n# Mine.\nplugins: [my_parts]\n"
    own_option(workplace / "mine", "debug", "trust", text)
    line = type_line.refused(*OWN, "debug=trust")
    assert line.startswith("plugins: only the command line")


def test_their_keys_are_checked_as_ours(type_line):
    line = type_line.refused(*OWN, PLUGINS, "model.position.slpe=1")
    assert "did you mean model.position.slope?" in line
    line = type_line.refused(*OWN, PLUGINS, "data.documents=few")
    assert "data.documents=few: is not a whole number" in line
    line = type_line.refused(*ROUTER, PLUGINS, "++moe.router.scale=200")
    assert "scale=200: is too much" in line
    line = type_line.refused("moe=uniform", *OWN, PLUGINS)
    assert "moe/uniform.yaml: moe.router.renormalize: is not true or false: 5" in line


def test_their_keys_without_effect_are_noted(type_line):
    job = type_line.accepted(
        "--config-dir", "mine", PLUGINS, "model/position=learned", "model.position.slope=0.5"
    )
    note = "model.position.slope=0.5 has no effect with model/position=learned"
    assert job.validated.notes == [note]


def test_what_cannot_change_a_result_stays_out_of_the_identity(type_line):
    jobs = [type_line.accepted(*OWN, PLUGINS, f"++data.note={note}") for note in ("a", "b")]
    assert jobs[0].validated.identity == jobs[1].validated.identity
    assert jobs[0].config["data"]["note"] == "a"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("plugins=my_parts", "write plugins=[PACKAGE]"),
        ("plugins=null", "write plugins=[PACKAGE]"),
        ("plugins=[other]", "'plugins=[my_parts]'"),
    ],
)
def test_plugins_mistyped(type_line, typed, told):
    assert told in type_line.refused(*OWN, typed)


def test_searchpath_is_another_spelling_of_config_dir(type_line):
    job = type_line.accepted("hydra.searchpath=[mine]", *OWN[2:], PLUGINS)
    assert job.chosen["data"] == "counting"
