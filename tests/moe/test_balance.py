"""The auxiliary losses by hand."""

import pytest
import torch

from llm.moe.balance import switch_loss, z_loss
from llm.moe.layer import MoE
from tests.toy_models import experts, randomised, shape


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
    load = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
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
    """`aux` is weighted, the statistics are not; a weight of 0 leaves no loss at all."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    layer = randomised(experts(4, 2, balance_loss=0.5, z_loss=0.0)(shape()))
    _, aux, router = layer(x)
    assert set(aux) == {"balance_loss"}
    torch.testing.assert_close(aux["balance_loss"], 0.5 * router["balance_loss"])
    assert not any(value.requires_grad for value in router.values())
    assert router["z_loss"] > 0
