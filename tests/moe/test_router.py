"""Who goes where, with what weight; the trap of the silent router first."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from llm.config.errors import Refused
from llm.layers.noise import keyed
from llm.moe.router import TopKRouter
from tests.toy_models import experts, randomised, router, shape, tokens, transformer


def make(n_experts: int = 5, top_k: int = 2, **changes) -> TopKRouter:
    return randomised(router(top_k, **changes)(8, n_experts, top_k))


def inputs(n: int = 30):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("top_k", "renormalize"), [(1, False), (2, True), (2, False), (3, True)])
def test_the_language_model_loss_alone_teaches_the_router(top_k, renormalize):
    """Trap 1: with one expert a token and its weight constantly 1, this gradient would be 0."""
    parts = experts(top_k=top_k, renormalize=renormalize, balance_loss=0.0, z_loss=0.0)
    model = randomised(transformer(parts))
    output = model(tokens(4, 12), tokens(4, 12, seed=1))
    assert output.aux == {}
    (output.loss_sum / output.n_tokens).backward()
    for block in model.blocks:
        assert block.feed_forward.router.weight_ED.grad.abs().max() > 1e-4


def test_renormalising_one_expert_is_refused():
    with pytest.raises(Refused) as refusal:
        router(1, renormalize=True)(8, 4, 1)
    assert refusal.value.key == "renormalize"
    assert "top_k=1" in str(refusal.value) and "\n" not in str(refusal.value)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(Refused, match="top_k: is 3, more than n_experts=2"):
        transformer(experts(n_experts=2, top_k=3))


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [2, 3, 5])
def test_weights_and_choices(renormalize, top_k):
    layer, x = make(top_k=top_k, renormalize=renormalize), inputs()
    logits = x @ layer.weight_ED.T
    values, chosen = logits.sort(descending=True)
    routing = layer(x)
    assert torch.equal(routing.experts_NK, chosen[:, :top_k])
    torch.testing.assert_close(routing.logits_NE, logits)
    torch.testing.assert_close(routing.probs_NE, logits.softmax(-1))
    if renormalize:  # a softmax over the chosen logits
        expected = values[:, :top_k].softmax(-1)
    else:  # a softmax over all, cut off
        expected = values.softmax(-1)[:, :top_k]
    torch.testing.assert_close(routing.weights_NK, expected)


def test_float32_under_autocast():
    layer, x = make(), inputs()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        routing = layer(x)
    for mine, theirs in zip(routing, exact, strict=True):
        if mine is None:
            continue
        assert mine.dtype is theirs.dtype
        assert torch.equal(mine, theirs)
    assert routing.weights_NK.dtype is torch.float32


def test_jitter_is_a_factor_of_the_input_in_training_only():
    layer, x = make(n_experts=8, jitter=0.1), inputs(4000)
    with torch.no_grad():
        layer.weight_ED.copy_(torch.eye(8))
    ratio = (layer(x).logits_NE / x).detach()
    assert 0.8999 < ratio.min() < 0.905 and 1.095 < ratio.max() < 1.1001
    assert ratio.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.02)
    assert not torch.equal(layer(x).logits_NE, layer(x).logits_NE)
    layer.eval()
    assert torch.equal(layer(x).logits_NE, x)


def test_the_gradient_is_that_of_the_softmax():
    layer, x = make(top_k=1, renormalize=False), inputs().requires_grad_()
    routing = layer(x)
    routing.weights_NK.sum().backward()
    weight = layer.weight_ED.detach().clone().requires_grad_()
    F.linear(x.detach(), weight).softmax(-1).amax(-1).sum().backward()
    torch.testing.assert_close(layer.weight_ED.grad, weight.grad)


@pytest.mark.parametrize("scores", ["softmax", "softmax_after_topk", "sigmoid"])
def test_a_bias_moves_the_choice_and_not_the_weights(scores):
    layer, x = make(top_k=2, renormalize=False, scores=scores), inputs()
    bias = torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0])
    routing = layer(x, bias_E=bias)
    assert (routing.experts_NK[:, 0] == 2).all()
    gates = {"softmax": layer(x).probs_NE, "sigmoid": layer(x).logits_NE.sigmoid()}
    if scores in gates:
        expected = gates[scores].gather(1, routing.experts_NK)
    else:
        expected = layer(x).logits_NE.gather(1, routing.experts_NK).softmax(-1)
    torch.testing.assert_close(routing.weights_NK, expected)
    torch.testing.assert_close(routing.probs_NE.sum(-1), torch.ones(len(x)))


def test_a_softmax_after_the_choice_is_one_before_it_that_is_renormalised():
    after = make(top_k=3, renormalize=False, scores="softmax_after_topk")
    before = make(top_k=3, renormalize=True)
    for one, other in zip(after(inputs())[:2], before(inputs())[:2], strict=True):
        torch.testing.assert_close(one, other)


def test_scale_multiplies_the_weights():
    plain, scaled = make(), make(scale=2.5)
    torch.testing.assert_close(2.5 * plain(inputs()).weights_NK, scaled(inputs()).weights_NK)


@pytest.mark.parametrize(
    "changes", [{"renormalize": True, "scores": "sigmoid"}, {"scores": "softmax_after_topk"}]
)
def test_a_weight_that_is_always_1_is_refused(changes):
    with pytest.raises(Refused, match="never learn"):
        router(1, **changes)(8, 4, 1)


def test_shazeers_noise_is_normal_with_the_learned_deviation_in_training_only():
    """Equation 4, and zero weights at the start: H = ε · softplus(0)."""
    layer = router(2, noise=True, init_scale=0.0, scores="softmax_after_topk", renormalize=False)
    layer = layer(8, 5, 2)
    assert not layer.weight_ED.any() and not layer.noise_weight_ED.any()
    routing = layer(inputs(4000))
    noise = (routing.noisy_NE / routing.noise_std_NE).detach().flatten().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    torch.testing.assert_close(routing.noise_std_NE, torch.full((4000, 5), 0.6931472))
    assert not routing.logits_NE.any()
    layer.eval()
    assert layer(inputs()).noisy_NE is None


def test_noise_belongs_to_its_row():
    """Whatever the split of a batch over calls, a row draws the same (`llm.layers.noise`)."""
    layer = randomised(experts(4, 2, jitter=0.2, noise=True)(shape()))
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(8, dtype=torch.int32).view(4, 2) * 7919
    with keyed(keys):
        whole = layer(x).y_BTD
    parts = []
    for i in range(4):
        with keyed(keys[i : i + 1]):
            parts.append(layer(x[i : i + 1]).y_BTD)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-4)
