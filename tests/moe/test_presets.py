"""What holds for every option of conf/moe, on a model of its own."""

import pytest
import torch

from llm.config.choices import Choices
from llm.config.instantiate import instantiate
from llm.layers.feed_forward import FeedForward
from tests.toy_models import randomised, shape, tokens, transformer

PRESETS = [name for name in Choices().groups["moe"] if name != "dense"]
CAUSAL = [name for name in PRESETS if name != "expert_choice"]


def layers_of(name: str, **changes):
    node = Choices().option("moe", name).node
    return instantiate({**node, **changes}, "moe")


def model_of(name: str, **changes):
    changes = {"top_k": 1, "n_experts": 4} | changes if name == "olmoe" else changes
    return randomised(transformer(layers_of(name, **changes), d_ff=32))


@pytest.mark.parametrize("name", PRESETS)
def test_future_tokens_change_no_past_logit_except_where_experts_choose(name):
    model = model_of(name).eval()
    ids = tokens(3, 12)
    later = ids.clone()
    later[:, 8:] = tokens(3, 4, seed=5)
    before, after = model(ids).logits_BTV, model(later).logits_BTV
    same = torch.allclose(before[:, :8], after[:, :8], atol=1e-5)
    assert same == (name in CAUSAL)


@pytest.mark.parametrize("name", PRESETS)
def test_other_rows_change_no_logit(name):
    """Capacity included, which is counted within each sequence."""
    model = model_of(name).eval()
    ids = tokens(3, 12)
    others = torch.cat([ids[:1], tokens(4, 12, seed=7)])
    alone, together = model(ids[:1]).logits_BTV, model(others).logits_BTV[:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_the_language_model_loss_alone_teaches_every_router_and_expert(name):
    """Trap 1 with the router as top-1 as it can be, and no balance loss to hide it."""
    renormalizes = Choices().option("moe", name).node["router"].get("renormalize")
    top_k = {} if renormalizes else {"top_k": 1}
    model = model_of(name, balance="none", **top_k)
    output = model(tokens(8, 12), tokens(8, 12, seed=1))
    assert output.aux == {}
    (output.loss_sum / output.n_tokens).backward()
    for block in model.blocks:
        for weight in block.feed_forward.router.parameters():
            assert weight.grad.abs().max() > 1e-5
        used = output.router["load_E"].min(0).values > 0
        gradients = block.feed_forward.experts.up_EDF.grad.abs().amax((1, 2))
        assert (gradients[used] > 0).all()


@pytest.mark.parametrize("name", CAUSAL)
@torch.inference_mode()
def test_decoding_with_a_cache_routes_as_reading_does(name):
    """A token at a time, and several rows at a time; the last on the path for a single token."""
    model = model_of(name, eval_capacity_factor=None).eval()
    for rows in (1, 3):
        ids, cache = tokens(rows, 9), model.cache(rows, 12)
        whole = model(ids).logits_BTV
        parts = [model(ids[:, :4], cache=cache).logits_BTV]
        for t in range(4, 9):
            output = model(ids[:, t : t + 1], cache=cache)
            assert output.aux == {} and output.router == {}  # nobody asked
            parts.append(output.logits_BTV)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_decoding_one_token_touches_the_chosen_experts_only():
    model = model_of("topk", n_experts=16).eval()
    cache = model.cache(1, 12)
    with torch.inference_mode():
        model(tokens(1, 4), cache=cache)
        feed_forward = model.blocks[0].feed_forward
        chosen: list[int] = []
        feed_forward.router.register_forward_hook(
            lambda _, __, routing: chosen.extend(routing.experts_NK[0].tolist())
        )
        first = model(tokens(1, 1), cache=cache).logits_BTV
        assert len(chosen) == 2
        cache.lengths[0] = 4
        for name, parameter in feed_forward.experts.named_parameters():
            for expert in set(range(16)) - set(chosen):
                parameter[expert] = torch.nan
            assert parameter.isnan().any(), name
        assert torch.equal(model(tokens(1, 1), cache=cache).logits_BTV, first)


def test_granularity_and_shared_experts():
    """m·N experts of width d_ff/m, of which m·K are used, and shared ones beside them."""
    layer = layers_of("fine_grained", n_experts=3, granularity=2, n_shared=2)(shape(d_ff=24))
    assert layer.experts.up_EDF.shape == (6, 16, 12)
    assert layer.router.top_k == 2 and layer.top_k == 2
    assert layer.shared.up.weight.shape == (24, 16)
    assert layer.experts.up_EDF.active == pytest.approx(2 / 6)
    randomised(layer)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    whole, shared = layer(x).y_BTD, layer.shared(x).y_BTD
    layer.shared = None
    torch.testing.assert_close(whole, layer(x).y_BTD + shared)


@pytest.mark.parametrize("name", ["switch", "olmoe", "fine_grained", "expert_choice"])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_one_expert_is_the_dense_layer(name, factor):
    """`n_experts=1 top_k=1` in outputs and gradients, through capacity and choice too."""
    changes = {"n_experts": 1, "top_k": 1, "granularity": 1, "n_shared": 0}
    if name != "expert_choice":
        changes["capacity_factor"] = factor
    layer, dense = layers_of(name, **changes)(shape()), randomised(FeedForward(shape()))
    own, theirs = layer.experts, {"up": dense.up, "down": dense.down}
    with torch.no_grad():
        for part, linear in theirs.items():
            matrix = own.up_EDF if part == "up" else own.down_EFD
            bias = own.up_bias_EF if part == "up" else own.down_bias_ED
            matrix[0], bias[0] = linear.weight.T, linear.bias
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = layer(a).y_BTD, dense(b).y_BTD
    torch.testing.assert_close(ya, yb)
    ya.square().sum().backward()
    yb.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own.up_EDF.grad[0], dense.up.weight.grad.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own.down_EFD.grad[0], dense.down.weight.grad.T, atol=1e-4, rtol=1e-4)
