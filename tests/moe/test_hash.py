"""Routing by token ids (Roller et al. 2021), the router that reads what the others do not."""

from functools import partial

import pytest
import torch

from llm.moe.hash import HashRouter
from llm.moe.layer import MoE
from tests.toy_models import context_of, randomised, shape, tokens, transformer

IDS = torch.arange(5000)


@pytest.mark.parametrize(("n_experts", "top_k"), [(4, 1), (7, 3), (64, 2)])
def test_an_id_has_experts_of_its_own_spread_evenly(n_experts, top_k):
    router = HashRouter(3, n_experts, top_k)
    routing = router(torch.randn(5000, 3), IDS)
    again = router(torch.randn(5000, 3), IDS.flip(0))
    assert torch.equal(routing.experts_NK, again.experts_NK.flip(0))
    assert all(len(set(row)) == top_k for row in routing.experts_NK.tolist())
    expected = 5000 * top_k / n_experts
    counts = routing.experts_NK.flatten().bincount(minlength=n_experts)
    assert (counts - expected).abs().max() < 5 * expected**0.5  # five standard deviations
    other = HashRouter(3, n_experts, top_k, seed=1)(torch.randn(5000, 3), IDS)
    assert (other.experts_NK[:, 0] == routing.experts_NK[:, 0]).float().mean() < 1.5 / n_experts


def test_tokens_reach_their_experts_through_the_model():
    """Each layer sends its tokens to the experts of their ids, in one call and from a cache."""
    parts = partial(MoE, n_experts=4, top_k=1, balance="none", router=HashRouterNode)
    model = randomised(transformer(parts)).eval()
    ids = tokens(2, 9)
    whole = model(ids)
    chosen = HashRouter(16, 4, 1)(torch.zeros(18, 16), ids.flatten()).experts_NK
    assert torch.equal(whole.router["experts_NK"][0], chosen)
    cache = model.cache(2, 9)
    read = torch.cat([model(ids[:, t : t + 1], cache=cache).logits_BTV for t in range(9)], 1)
    torch.testing.assert_close(read, whole.logits_BTV, atol=1e-5, rtol=1e-4)


def HashRouterNode(d_model, n_experts, top_k):
    return HashRouter(d_model, n_experts, top_k)


def test_the_layer_by_itself_needs_no_tokens():
    layer = MoE(shape(), n_experts=4, top_k=1, balance="none", router=HashRouterNode)
    x = torch.randn(1, 3, 16)
    torch.testing.assert_close(layer(x).y_BTD, layer(x, context_of(x)).y_BTD)
