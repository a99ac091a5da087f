"""Which public architecture a config of ours is, and which key stands in the way of any."""

import copy

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.config.errors import Refused
from llm.hf.families import FAMILIES
from llm.hf.mapping import canonical, from_theirs, to_theirs
from llm.hf.weights import Layout


def composed(*overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)


@pytest.fixture(scope="module")
def configs():
    return {name: composed(f"model={name}") for name in FAMILIES} | {
        "small": composed("model=small", "moe=dense")
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_each_of_our_presets_is_the_architecture_of_its_name(configs, name):
    config = configs[name]
    if name not in ("mixtral", "olmoe", "qwen3_moe"):
        config = {**config, "moe": {"_target_": "llm.layers.feed_forward.FeedForward"}}
    family, theirs = to_theirs(config, 61)
    assert family.model_type == theirs["model_type"] == name
    back, vocab_size = from_theirs(theirs, family)
    assert vocab_size == 61
    again, same = to_theirs(back, 61)
    assert (again.model_type, same) == (name, theirs)
    model = build_model({**config, "seed": 0}, 61, device="meta")
    assert Layout(family.names, model).shapes()  # no parameter without a name


def changed(configs, name, **changes):
    config = copy.deepcopy(configs[name])
    for key, value in changes.items():
        node = config
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return config


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gpt2", {"model__norm_position": "post"}, "model.norm_position=post: gpt2 has pre"),
        ("gpt2", {"model__bias": False}, "model.bias=False: gpt2 has True"),
        ("gpt2", {"model__n_kv_heads": 1}, "model.n_kv_heads=1: gpt2 has as many key-value heads"),
        (
            "llama",
            {"model__activation": "relu2"},
            "model.activation=relu2: llama has swiglu, geglu",
        ),
        ("llama", {"model__qk_norm": "head"}, "model.qk_norm=head: llama has none"),
        ("llama", {"model__logit_softcap": 30.0}, "model.logit_softcap=30.0: llama has None"),
        (
            "llama",
            {"model__parametrization": "mup"},
            "model.parametrization=mup: llama has standard",
        ),
        (
            "llama",
            {"model__position___target_": "llm.model.position.Alibi"},
            "model.position=None: llama needs rotary positions",
        ),
        ("mistral", {"model__n_sinks": 4}, "model.n_sinks=4: mistral has 0"),
        ("mistral", {"model__window": [9, None]}, "model.window=[9, None]: llama has None"),
        (
            "mixtral",
            {"moe__router__scores": "sigmoid"},
            "moe.router.scores=sigmoid: mixtral has softmax",
        ),
        ("mixtral", {"moe__n_shared": 1}, "moe.n_shared=1: mixtral has 0"),
        ("mixtral", {"moe__balance": "switch+bias"}, "moe.balance=switch+bias: mixtral has switch"),
        ("mixtral", {"moe__new_key": 1}, "moe.new_key=1: mixtral has nothing like it"),
        (
            "mixtral",
            {"moe___target_": "mine.MoE"},
            "moe._target_=mine.MoE: mixtral has llm.moe.layer.MoE",
        ),
    ],
)
def test_what_no_architecture_has_is_named(configs, name, changes, said):
    config = changed(configs, name, **changes)
    if name in ("gpt2", "llama", "mistral"):
        config["moe"] = {"_target_": "llm.layers.feed_forward.FeedForward"}
    with pytest.raises(Refused) as refusal:
        to_theirs(config, 61)
    assert str(refusal.value).startswith(f"no public architecture can express this model: {said}")


def test_settings_of_training_do_not_stand_in_the_way(configs):
    trained = changed(
        configs,
        "mixtral",
        model__dropout=0.1,
        model__init="depth_scaled",
        moe__balance="importance+z",
        moe__capacity_factor=1.25,
        moe__router__jitter=0.01,
    )
    assert to_theirs(trained, 61) == to_theirs(configs["mixtral"], 61)


def test_another_spelling_of_the_same_function_is_the_same(configs):
    """Windows all alike, heads that are counted out, fine-grained experts, weights after top-k."""
    same = changed(
        configs,
        "mixtral",
        model__window=[16, 16],
        model__n_sinks=0,
        model__head_dim=32,
        model__d_ff=1024,
        moe__granularity=2,
        moe__n_experts=4,
        moe__top_k=1,
        moe__router__scores="softmax_after_topk",
        moe__router__renormalize=False,
    )
    plain = changed(configs, "mixtral", model__window=16)
    assert canonical(same) == canonical(plain)
    family, theirs = to_theirs(same, 61)
    assert family.model_type == "mixtral"
    numbers = ("intermediate_size", "num_local_experts", "num_experts_per_tok", "sliding_window")
    assert [theirs[name] for name in numbers] == [512, 8, 2, 16]


def test_the_nearest_architecture_that_has_it_all_is_taken(configs):
    dense = {"_target_": "llm.layers.feed_forward.FeedForward"}
    odd = changed(configs, "llama", model__n_heads=3, model__head_dim=8, model__n_kv_heads=3)
    assert to_theirs({**odd, "moe": dense}, 61)[0].model_type == "mistral"  # 3 ∤ 256
    shared = changed(configs, "mixtral", moe__router__renormalize=False)
    with pytest.raises(Refused, match=r"moe\.router\.renormalize=False: mixtral has True"):
        to_theirs(shared, 61)
    normed = changed(configs, "mixtral", model__qk_norm="projection")
    assert to_theirs(normed, 61)[0].model_type == "olmoe"
