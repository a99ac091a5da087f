"""Parameters by formula, operations by PyTorch's own counter."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from llm.build import build_model
from llm.config.choices import Choices, conf_folder
from llm.layers.feed_forward import FeedForward
from llm.model import attention as attention_module
from llm.model.accounting import account
from llm.model.mask import mask
from llm.moe import experts as experts_module
from tests.toy_models import FEED_FORWARDS, POSITIONS, STYLES, experts, tokens, transformer

D, F_, L, V, T = 32, 64, 3, 101, 64
SIZE = {"d_model": D, "d_ff": F_, "n_layers": L, "vocab_size": V, "max_seq_len": T}


def explicit_attention(
    q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Attention as matrix products, which the counter sees: all T · T of them."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    if attn_mask is None:
        attn_mask = torch.full((q.shape[2], k.shape[2]), -torch.inf).triu(1)
    return (scores + attn_mask).softmax(-1) @ v


def no_bias(query, key):
    return None


def whole_square(q, k, v, context, window, n_sinks, mask_of_blocks, attend):
    """A window as a mask on all pairs."""
    index, start = context.index_T[None], context.start_BT
    return attend(q, k, v, mask(index, index, start, window, n_sinks, no_bias, q.dtype))


CHOICES = Choices()
SMALL = {"d_model": D, "d_ff": F_, "n_layers": 2, "n_heads": 4, "max_seq_len": T}
#: What else an option sets, in small.
SMALL_WHERE_SET = {"n_kv_heads": 2, "head_dim": 12, "window": 16, "d_ff_dense": 80, "n_experts": 8}


@cache
def composed(group: str, option: str) -> dict:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_folder().absolute()), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", [f"{group}={option}"]))[group]
    return node


def in_small(node: dict) -> dict:
    return {k: SMALL_WHERE_SET.get(k, v) if v is not None else v for k, v in node.items()}


#: Every preset as it is, and one with windows and dense layers among the experts.
WINDOWED = {"window": [8, None], "n_sinks": 3, "moe_every": 2}
SIZES = ("tiny", "mini", "small", "medium", "large")  # `base`, when all are made small
PRESETS = [(name, {}) for name in CHOICES.groups["model"] if name not in SIZES]
PRESETS.append(("nano", WINDOWED))


def every_pair():
    """Presets with kinds of experts. What both cost is a sum, so a third of the pairs is enough."""
    for i, (name, changes) in enumerate(PRESETS):
        for j, moe in enumerate(CHOICES.groups["moe"]):
            marks = [] if (i + j) % 3 == 0 or changes else [pytest.mark.slow]
            yield pytest.param(name, moe, changes, marks=marks)


@pytest.mark.parametrize(("name", "moe", "changes"), list(every_pair()))
def test_operations_are_those_that_pytorch_counts(monkeypatch, name, moe, changes):
    """Forward and backward of every preset with every kind of experts.

    A causal query sees half of the positions on average, fewer with a window, so as many of the
    products of attention count; the counter, given full squares, sees the others too.
    """
    monkeypatch.setattr(F, "scaled_dot_product_attention", explicit_attention)
    monkeypatch.setattr(attention_module, "attend_in_blocks", whole_square)
    monkeypatch.setattr(experts_module, "_grouped_mm_takes", lambda *_: False)
    node = {**in_small(composed("model", name)), **SMALL, **changes}
    experts = in_small(composed("moe", moe))
    if "capacity_factor" in experts:  # the account is of tokens that are not dropped
        experts["capacity_factor"] = None
    config = {"model": node, "moe": experts, "seed": 0}
    model = build_model(config, V)
    ids, rows = tokens(2, T, vocab_size=V), 2
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).loss_sum.backward()
    attentions = [block.attention for block in model.blocks]
    unseen = sum(12 * (a.n_heads * a.head_dim * T - a.channels_met(T)) for a in attentions)
    measured = counter.get_total_flops() / (rows * T) - unseen
    assert account(model, T).flops_per_token == pytest.approx(measured, rel=0.01)


def test_configs_of_runs_from_before_a_key_build_as_they_did():
    """A saved config lacks the keys that came later; their defaults change nothing."""
    node = {**composed("model", "nano"), **SMALL}
    early = {*SMALL, "_target_", "position", "n_kv_heads", "norm", "norm_eps", "qk_norm"}
    early |= {"activation", "bias", "tie_embeddings", "dropout", "init_std"}
    ids = tokens(2, 12, vocab_size=V)
    moe = composed("moe", "dense")
    now, then = (
        build_model({"model": config, "moe": moe, "seed": 0}, V)(ids).logits_BTV
        for config in (node, {key: value for key, value in node.items() if key in early})
    )
    assert torch.equal(now, then)


@pytest.mark.parametrize("length", [1, 5, 8, 9, 40])
@pytest.mark.parametrize(
    ("window", "n_sinks"), [(None, 0), (1, 0), (8, 0), (8, 3), (3, 20), (99, 2)]
)
def test_channels_met_are_those_of_keys_that_a_mask_lets_through(window, n_sinks, length):
    """On average over the queries, each seeing itself as half of a key: T/2 without a window."""
    model = transformer(window=window, n_sinks=n_sinks, n_layers=1)
    index = torch.arange(length)
    added = mask(index, index, None, window, n_sinks, no_bias, torch.float32)
    seen = added.isfinite().sum().item() / length - 0.5
    attention = model.blocks[0].attention
    heads = attention.n_heads * attention.head_dim
    assert attention.channels_met(length) == pytest.approx(heads * seen)
    if window is None:
        assert seen == length / 2


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("moe", FEED_FORWARDS)
@pytest.mark.parametrize("style", STYLES)
def test_parameters_by_formula(moe, position, style):
    n_experts, top_k = {"dense": (1, 1), "switch": (4, 1), "topk": (4, 2)}[moe]
    gpt2 = style == "gpt2"
    inner = D * F_ * (2 if gpt2 else 3) + (F_ + D if gpt2 else 0)
    norm = 2 * D if gpt2 else D
    attention = 4 * D * D + (4 * D if gpt2 else 0) + (2 * D // 4 if style == "qwen3" else 0)
    router = 0 if moe == "dense" else n_experts * D
    of_position = {"learned": T * D, "kerple": 2 * 4}.get(position, 0)
    rest = V * D * (2 if style == "llama" else 1) + of_position + norm
    block = attention + 2 * norm + router
    costs = account(transformer(moe, position, style, **SIZE), T)
    assert costs.params_total == rest + L * (block + n_experts * inner)
    assert costs.params_active == rest + L * (block + top_k * inner)


def test_active_is_what_a_gradient_reaches():
    """One token through 8 experts, 3 of them used: what moves is what is counted as active."""
    parts = experts(8, 3, renormalize=False)
    model = transformer(parts, "none", "llama", tie_embeddings=False)
    model(tokens(1, 1), tokens(1, 1)).loss_sum.backward()
    moved = 0
    for parameter in model.parameters():
        if parameter.role == "expert":
            moved += sum(p.numel() for p in parameter.grad if p.any())
        else:
            moved += parameter.numel()
    assert account(model, 12).params_active == moved


@pytest.mark.parametrize(
    ("name", "without_vocabulary"),
    [
        ("nano", 0.40e6),
        ("tiny", 1.8e6),
        ("mini", 3.2e6),
        ("small", 19e6),
        ("base", 85e6),
        ("medium", 302e6),
        ("large", 708e6),
        ("gpt2", 4.8e6),
        ("llama", 4.5e6),
        ("mistral", 4.2e6),
    ],
)
def test_sizes_are_what_their_files_say(name, without_vocabulary):
    node = composed("model", name)
    model = build_model({"model": node, "moe": _DENSE, "seed": 0}, 256, device="meta")
    costs = account(model, node["max_seq_len"])
    embeddings = sum(p.numel() for p in model.parameters() if p.role in ("head", "embedding"))
    assert costs.params_total - embeddings == pytest.approx(without_vocabulary, rel=0.03)
    assert costs.params_active == costs.params_total


_DENSE = {"_target_": f"{FeedForward.__module__}.{FeedForward.__qualname__}"}
