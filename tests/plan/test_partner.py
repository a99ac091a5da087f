"""`compare`: the dense partner of a model with experts is equal in what it says, and is a run."""

import json
from pathlib import Path

import pytest
import yaml

from llm.build import account_for, build_model
from llm.config.choices import Choices
from llm.config.compose import Composer
from llm.config.errors import Refused
from llm.config.jobs import Jobs
from llm.config.overrides import read
from llm.plan.memory import peak_memory
from llm.plan.timing import Times
from llm.plan.width import DENSE
from llm.runs.identity import config_hash
from llm.tokenizer.bytes import Bytes
from tests.toy import TOY
from tests.typist import Typist

CHOICES = Choices()
NANO = ["model=nano", "model.n_layers=2", "hardware=cpu", "hardware.precision=fp32"]
#: Models with experts of every kind that changes what a layer costs.
KINDS = {
    "top-2, gated": "moe=topk",
    "finer and shared": "moe=fine_grained",
    "every second layer": "moe=topk model.moe_every=2",
    "dense layers of their own width": "moe=switch model.dense_first=1 model.d_ff_dense=100",
    "plain, with biases": "moe=mixtral model.activation=gelu model.bias=true",
}


@pytest.fixture(scope="module")
def validated():
    """`validated(line)`: what the command makes of the overrides."""
    composer = Composer(CHOICES, [])

    def validate(line: str):
        typed = read([*NANO, *line.split()], CHOICES, True)
        jobs = Jobs("llm.train", print, CHOICES, typed, True)
        with composer.opened():
            return jobs.job(0, next(jobs.grid()), composer).validated(CHOICES)

    return validate


def amounts(config: dict, vocab_size: int = 999) -> dict[str, float]:
    """By the accounts of the real model."""
    costs = account_for(config, build_model(config, vocab_size, device="meta"))
    memory = peak_memory(config, costs.params_total, vocab_size)
    return {
        "active_flops": costs.flops_per_token,
        "total_params": costs.params_total,
        "memory": memory,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_partner_is_as_equal_as_a_whole_width_allows(validated, kind):
    line = KINDS[kind]
    experts = validated(line)
    wanted = amounts(experts.config)
    for by, amount in wanted.items():
        found = validated(f"{line} compare={by}")
        model = found.config["model"]
        assert found.chosen["moe"] == "dense"
        assert "n_experts" not in found.config["moe"]
        off = abs(amounts(found.config)[by] - amount)
        assert off < 0.005 * amount
        if by == "active_flops":  # half of what one more of d_ff costs
            matrices = 3 if model["activation"] == "swiglu" else 2
            assert off <= 3 * matrices * model["d_model"] * model["n_layers"]
        changed = {key for key in model if model[key] != experts.config["model"][key]}
        assert changed <= {"d_ff", "moe_every"}


def test_a_partner_is_the_run_that_is_typed_by_hand(validated):
    found = validated("moe=topk moe.n_experts=8 model.moe_every=1 compare=active_flops")
    d_ff = found.config["model"]["d_ff"]
    by_hand = validated(f"moe=dense model.d_ff={d_ff}")
    assert config_hash(found.identity) == config_hash(by_hand.identity)
    assert found.chosen == by_hand.chosen
    assert found.config == {**by_hand.config, "compare": "active_flops"}
    assert f"compare=active_flops: this is moe=dense model.d_ff={d_ff}" in found.notes
    # Where all layers of the partner are alike, which of them had experts is no part of it.
    here = validated("moe=topk model.moe_every=2 compare=active_flops")
    there = validated("moe=topk model.dense_first=1 compare=active_flops")
    assert config_hash(here.identity) == config_hash(there.identity)


def test_compare_has_no_effect_on_a_dense_model(validated):
    found = validated("moe=dense compare=total_params")
    assert config_hash(found.identity) == config_hash(validated("moe=dense").identity)
    assert found.config["compare"] is None
    assert found.notes == ["compare=total_params has no effect with moe=dense"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("compare=activ_flops", "compare=activ_flops: is not one of active_flops, total_params"),
        ("compare=memory model.init_from=x moe=topk", "compare=memory: weights to start from"),
    ],
)
def test_what_cannot_be_compared_is_refused(validated, workplace, line, told):
    with pytest.raises(Refused, match=told):
        validated(line)


def test_the_width_of_equal_time_lies_between_measured_ones():
    assert Times(None, {}).missing(100) == [100, 200]
    assert Times(None, {100: 1.0}).missing(100) == [200]
    times = Times(2.5, {100: 1.0, 200: 2.0})
    assert times.width() == 250
    assert times.missing(100) == [250]
    known = Times(1.5, {100: 1.0, 200: 2.0})
    assert known.missing(100) == [] and known.width() == 150
    with pytest.raises(Refused, match="no dense model of this shape is as quick"):
        Times(0.1, {100: 2.0, 200: 3.0}).width()
    with pytest.raises(Refused, match="the times say nothing"):
        Times(1.0, {100: 2.0, 200: 2.0}).width()
    assert Times(1.0, {100: 2.0, 200: 2.0}).missing(100) == [800]


def test_cfg_shows_the_partner(workplace, monkeypatch, capsys):
    line = ["--cfg", "job", "moe=switch", "moe.n_experts=8", "compare=active_flops"]
    ended = Typist(monkeypatch, capsys)(*line)
    assert ended.code == 0
    shown = yaml.safe_load(ended.out)
    assert shown["moe"] == DENSE
    assert shown["model"]["d_ff"] > 176


@pytest.mark.slow
def test_the_width_of_equal_time_is_decided_once(toy_text, monkeypatch, capsys):
    line = [*TOY, "moe=switch", "compare=time"]
    type_line = Typist(monkeypatch, capsys)
    unknown = type_line(*line)
    assert unknown.code == 2
    assert "compare=time: how long these models' steps take is not known" in unknown.err
    experts = type_line.accepted(*TOY, "moe=switch")
    dense = [type_line.accepted(*TOY, "moe=dense", f"model.d_ff={n}") for n in (32, 64)]
    for job, seconds in zip([experts, *dense], (2.5, 1.0, 3.0), strict=True):
        _pretend(job.config, seconds)
    made = type_line.accepted(*line)
    assert made.chosen["moe"] == "dense"
    assert made.config["model"]["d_ff"] == 56
    _pretend(experts.config, 1.5)
    again = type_line.accepted(*line, "optimizer.lr=1e-4", "seed=7")
    assert again.config["model"]["d_ff"] == 56


def _pretend(config: dict, seconds: float) -> None:
    """A run of this config in which a token of training took so long."""
    folder = Path("outputs/runs") / f"{config['moe'].get('n_experts')}-{config['model']['d_ff']}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {"device": "cpu", "precision": "fp32", "flops_per_token": 9, "params_total": 9}
    (folder / "run.json").write_text(json.dumps({**facts, "vocab_size": Bytes().vocab_size}))
    rate = {"perf/tokens_per_second": 1 / seconds}
    rows = [{"step": i, "tokens": i, "perf/seconds": i * seconds, **rate} for i in range(1, 9)]
    (folder / "perf.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
