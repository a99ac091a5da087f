"""What is logged of the routers."""

import pytest
import torch

from llm.moe.statistics import summarise
from tests.toy_models import experts, randomised, tokens, transformer


def test_dense_has_none():
    assert summarise(transformer("dense")(tokens(1, 4)).router) == {}


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_loads_sum_to_one_in_every_layer(top_k):
    model = randomised(transformer(experts(4, top_k), n_layers=3))
    router = model(tokens(3, 12)).router
    assert router["load_E"].shape == (3, 4)
    torch.testing.assert_close(router["load_E"].sum(1), torch.ones(3))
    for name in ("entropy", "confidence", "balance_loss", "z_loss"):
        assert router[name].shape == (3,)
    assert (router["entropy"] <= torch.tensor(4.0).log() + 1e-6).all()
    assert ((router["confidence"] >= 0.25) & (router["confidence"] <= 1)).all()


def test_figures_by_hand():
    router = {
        "load_E": torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.9, 0.1, 0.0]]),
        "entropy": torch.tensor([1.0, 0.5]),
    }
    figures = summarise(router)
    assert figures == pytest.approx(
        {"moe/entropy": 0.75, "moe/max_over_mean": 3.6, "moe/dead": 2.0}
    )


def test_statistics_of_a_sure_and_of_an_even_router():
    model = transformer(experts(4, 1), n_layers=1)
    weight = model.blocks[0].feed_forward.router.weight_ED
    with torch.no_grad():
        weight.zero_()
    even = summarise(model(tokens(2, 8)).router)
    assert even["moe/entropy"] == pytest.approx(1.386294, abs=1e-5)
    assert even["moe/confidence"] == pytest.approx(0.25)
    with torch.no_grad():
        weight.normal_(std=1e4)
    sure = summarise(model(tokens(2, 8)).router)
    assert sure["moe/entropy"] == pytest.approx(0, abs=1e-4)
    assert sure["moe/confidence"] == pytest.approx(1)
