"""Parameters by formula, operations by PyTorch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from llm.build import build_model
from llm.layers.feed_forward import FeedForward
from llm.model.accounting import account
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
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("moe", [*FEED_FORWARDS, "eight"])
@pytest.mark.parametrize(("style", "n_kv_heads"), [("gpt2", None), ("llama", 2), ("qwen3", None)])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_operations_are_those_that_pytorch_counts(monkeypatch, moe, style, n_kv_heads, position):
    """Forward and backward. A causal query sees half of the positions, so half of the products of
    attention count; the counter, given full squares, sees the other half too."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", explicit_attention)
    monkeypatch.setattr(experts_module, "_grouped_mm_takes", lambda *_: False)
    parts = experts(8, 3, renormalize=False) if moe == "eight" else moe
    model = transformer(parts, position, style, n_kv_heads=n_kv_heads, **SIZE)
    ids, rows = tokens(2, T, vocab_size=V), 2
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).loss_sum.backward()
    costs = account(model, T)
    uncounted_half = 6 * L * D * T
    measured = counter.get_total_flops() / (rows * T) - uncounted_half
    assert costs.flops_per_token == pytest.approx(measured, rel=0.01)


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
    rest = V * D * (2 if style == "llama" else 1) + (T * D if position == "learned" else 0) + norm
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
    ],
)
def test_sizes_are_what_their_files_say(name, without_vocabulary):
    node = _composed(name)
    model = build_model({"model": node, "moe": _DENSE, "seed": 0}, 256, device="meta")
    costs = account(model, node["max_seq_len"])
    embeddings = sum(p.numel() for p in model.parameters() if p.role in ("head", "embedding"))
    assert costs.params_total - embeddings == pytest.approx(without_vocabulary, rel=0.03)
    assert costs.params_active == costs.params_total


_DENSE = {"_target_": f"{FeedForward.__module__}.{FeedForward.__qualname__}"}


def _composed(name: str) -> dict:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from llm.config.choices import conf_folder

    with initialize_config_dir(str(conf_folder().absolute()), version_base="1.3"):
        config = compose("train", [f"model={name}"])
    return OmegaConf.to_container(config.model)
