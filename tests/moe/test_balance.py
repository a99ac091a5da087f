"""The auxiliary losses by hand."""

from itertools import product

import pytest
import torch
from torch import nn

from llm.config.errors import Refused
from llm.moe.balance import (
    TERMS,
    Balance,
    after_step,
    chance_of_choice,
    cv_squared,
    switch_loss,
    z_loss,
)
from llm.moe.layer import MoE
from tests.toy_models import experts, randomised, shape, tokens, transformer


def layer_that_sends(experts_NK: list[list[int]], probability: float = 0.9) -> tuple[MoE, float]:
    """A layer and an input whose tokens have these choices, in a one-hot world."""
    n_experts, top_k = 4, len(experts_NK[0])
    layer = experts(n_experts, top_k, balance_loss=1.0, z_loss=1.0)(shape())
    x = torch.zeros(1, len(experts_NK), 16)
    for token, chosen in enumerate(experts_NK):
        for rank, expert in enumerate(chosen):
            x[0, token, expert] = 2.0 - 0.5 * rank
    with torch.no_grad():
        layer.router.weight_ED.zero_()
        layer.router.weight_ED[:, :4] = torch.eye(4)
    return layer, x


@pytest.mark.parametrize(
    "choices",
    [
        [[0], [1], [2], [3]],
        [[0, 1], [1, 2], [2, 3], [3, 0]],
        [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]],
    ],
)
def test_balance_loss_is_1_at_perfect_balance_for_every_k(choices):
    """Trap 2: other code calls this 1, K or 1/E."""
    layer, x = layer_that_sends(choices)
    _, aux, router = layer(x)
    torch.testing.assert_close(router["load_E"], torch.full((4,), 0.25))
    assert aux["balance_loss"].item() == pytest.approx(1.0, abs=1e-6)


def test_balance_loss_by_hand_where_all_go_to_one():
    layer, x = layer_that_sends([[2], [2], [2]])
    p = torch.tensor([0.0, 0.0, 2.0, 0.0]).softmax(0)[2].item()
    _, aux, router = layer(x)
    assert router["load_E"].tolist() == [0, 0, 1, 0]
    assert aux["balance_loss"].item() == pytest.approx(4 * p)


def test_the_load_is_not_differentiated():
    load = torch.tensor([[0.5, 0.3, 0.2]], requires_grad=True)
    logits = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    switch_loss(load, logits.softmax(-1)).backward()
    assert load.grad is None
    # d/dz of E Σ f_i mean_n p_i, with f constant
    p, f = logits.detach().softmax(-1), load.detach()
    expected = 3 / 7 * p * (f - (p * f).sum(-1, keepdim=True))
    torch.testing.assert_close(logits.grad, expected)


def test_the_balance_loss_pushes_towards_balance():
    layer = randomised(experts(4, 1, balance_loss=1.0, z_loss=0.0)(shape()))
    x = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(0)) + 1
    before = layer(x).router["load_E"].max()
    for _ in range(60):
        layer.zero_grad()
        layer(x).aux["balance_loss"].backward()
        with torch.no_grad():
            layer.router.weight_ED -= 0.3 * layer.router.weight_ED.grad
    assert layer(x).router["load_E"].max() < 0.35 < before


def test_z_loss_formula():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = ((0.6931472) ** 2 + (3.1269280) ** 2) / 2
    assert z_loss(logits).item() == pytest.approx(expected, rel=1e-6)


def test_weights_scale_what_is_reported_apart():
    """`aux` is weighted, the statistics are not; a weight of 0 leaves its loss out."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    layer = randomised(experts(4, 2, balance_loss=0.5, z_loss=0.0)(shape()))
    _, aux, router = layer(x)
    assert set(aux) == {"balance_loss"}
    torch.testing.assert_close(aux["balance_loss"], 0.5 * router["balance_loss"])
    assert not any(value.requires_grad for value in router.values()) and "z_loss" not in router


# -- Shazeer's -----------------------------------------------------------------------------------


def test_importance_and_load_are_0_at_balance_and_their_worst_by_hand():
    assert cv_squared(torch.full((1, 4), 3.0)).item() == 0
    assert cv_squared(torch.tensor([[8.0, 0, 0, 0]])).item() == pytest.approx(3)  # E − 1
    layer, x = layer_that_sends([[0, 1], [1, 2], [2, 3], [3, 0]])
    layer.balance = Balance("importance", dict.fromkeys(TERMS.values(), 1.0), 4)
    assert layer(x).aux["importance_loss"].item() == pytest.approx(0, abs=1e-12)
    layer, x = layer_that_sends([[2], [2], [2]])
    layer.balance = Balance("importance", dict.fromkeys(TERMS.values(), 1.0), 4)
    assert layer(x).aux["importance_loss"].item() == pytest.approx(3)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_load_estimate_against_monte_carlo(top_k):
    """P(x, i): expert i's own noise drawn anew 200,000 times, the others' left as they are."""
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randn(3, 4, generator=generator)
    std = 0.3 + torch.rand(3, 4, generator=generator)
    noisy = logits + std * torch.randn(3, 4, generator=generator)
    estimate = chance_of_choice(logits, noisy, std, top_k)
    for n, i in product(range(3), range(4)):
        draws = noisy[n].expand(200_000, 4).clone()
        draws[:, i] = logits[n, i] + std[n, i] * torch.randn(200_000, generator=generator)
        measured = (draws.topk(top_k).indices == i).any(-1).float().mean()
        assert estimate[n, i].item() == pytest.approx(measured.item(), abs=0.006)


def test_the_mean_of_the_load_estimate_is_the_load():
    """Over the noise of all, Σ P(x, i) has the mean of the number of tokens that expert i gets."""
    layer = experts(
        5, 2, balance="load", noise=True, scores="softmax_after_topk", renormalize=False
    )
    layer = randomised(layer(shape()))
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)).expand(20_000, 16)
    torch.manual_seed(0)
    routing = layer.router(x)
    estimate = chance_of_choice(routing.logits_NE, routing.noisy_NE, routing.noise_std_NE, 2)
    counts = torch.zeros_like(estimate).scatter(-1, routing.experts_NK, 1.0)
    torch.testing.assert_close(estimate.mean(0), counts.mean(0), atol=0.012, rtol=0)
    assert counts.mean(0).min() < 0.3 < 0.6 < counts.mean(0).max()


def test_the_load_loss_teaches_gate_and_noise_and_is_left_out_of_evaluation():
    layer = experts(5, 2, balance="load", noise=True)(shape())
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        layer.router.weight_ED.normal_(std=0.1)
    layer(x).aux["load_loss"].backward()
    assert layer.router.weight_ED.grad.abs().max() > 1e-4
    assert layer.router.noise_weight_ED.grad.abs().max() > 1e-4
    assert layer.eval()(x).aux == {}


# -- the bias ------------------------------------------------------------------------------------


def test_the_bias_moves_by_its_step_against_the_load():
    balance = Balance("bias", {"bias_update": 0.01}, 4)
    balance.after_step(torch.tensor([5.0, 1.0, 2.0, 0.0]))
    assert balance.bias_E.tolist() == pytest.approx([-0.01, 0.01, 0, 0.01])
    balance.after_step(torch.tensor([0.25, 0.25, 0.25, 0.25]))
    assert balance.bias_E.tolist() == pytest.approx([-0.01, 0.01, 0, 0.01])
    thirds = torch.tensor([0.1 + 0.2, 0.3, 0.15 + 0.15, 0.1 + 0.1 + 0.1])  # equal but for rounding
    balance.after_step(torch.nextafter(thirds, torch.tensor([1.0, 0.0, 1.0, 0.0])))
    assert balance.bias_E.tolist() == pytest.approx([-0.01, 0.01, 0, 0.01])
    assert list(balance.state_dict()) == ["bias_E"] and not list(balance.parameters())
    without = Balance("switch", dict.fromkeys(TERMS.values(), 1.0), 4)
    without.after_step(torch.ones(4))
    assert not without.state_dict()


def test_the_bias_alone_balances():
    layer = randomised(experts(8, 2, balance="bias", bias_update=0.02, scores="sigmoid")(shape()))
    x = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(0)) + 0.7
    with torch.no_grad():
        first = layer(x).router["load_E"]
        for _ in range(150):
            after_step(layer, layer(x).router["load_E"][None])
        last = layer(x)
    assert 8 * first.max() > 2 and 8 * last.router["load_E"].max() < 1.25
    assert last.aux == {}


def test_each_layer_hears_of_its_own_load():
    model = transformer(experts(4, 1, balance="bias", bias_update=0.5), n_layers=3)
    load_LE = torch.eye(4)[:3]
    after_step(model, load_LE)
    for i, block in enumerate(model.blocks):
        assert block.feed_forward.balance.bias_E.argmin() == i
    after_step(transformer("dense"), None)


# -- any split of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 2, 2], [3, 3]])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_losses_gradients_and_loads_are_those_of_any_equal_split(sizes, factor):
    """Each term is a mean over sequences: micro-steps of equal size average to the whole batch."""
    model = randomised(
        transformer(
            experts(4, 2, balance="switch+importance+z+bias", capacity_factor=factor),
            max_seq_len=12,
        )
    ).double()
    ids = tokens(6, 12)
    results = []
    for parts in ([6], sizes):
        model.zero_grad()
        load, sums = 0.0, dict.fromkeys(("balance_loss", "importance_loss", "z_loss"), 0.0)
        for part in ids.split(parts):
            output = model(part, part)
            (sum(output.aux.values()) / len(parts)).backward()
            load = load + output.router["load_E"] / len(parts)
            sums = {name: sums[name] + output.aux[name].detach() / len(parts) for name in sums}
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([load, *sums.values(), *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["none", "switch", "importance+load", "z+bias", "+".join(TERMS)])
def test_any_combination(names):
    model: nn.Module = transformer(experts(4, 2, balance=names, noise=True))
    output = model(tokens(2, 9), tokens(2, 9))
    wanted = {TERMS[n] for n in names.split("+") if n not in ("none", "bias")}
    assert output.aux.keys() == wanted
    biased = model.blocks[0].feed_forward.balance.bias_E is not None
    assert biased == ("bias" in names)


@pytest.mark.parametrize("names", ["swich", "switch,z", "switch+switch", "none+z"])
def test_other_names_are_refused(names):
    with pytest.raises(Refused, match="switch, importance, load, z, bias"):
        Balance(names, dict.fromkeys(TERMS.values(), 1.0), 4)
