"""Sparse upcycling: at step 0 the experts compute what the dense model does."""

import pytest
import torch

from llm.config.errors import Refused
from llm.moe.upcycle import upcycle
from tests.toy_models import experts, randomised, tokens, transformer


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 2},
        {"top_k": 3, "scores": "sigmoid", "balance": "bias"},
        {"top_k": 2, "renormalize": False, "scores": "softmax_after_topk", "noise": True},
    ],
)
def test_weights_that_add_up_to_one_give_the_dense_model(style, changes):
    dense = randomised(transformer("dense", style=style)).eval()
    model = randomised(transformer(experts(5, **changes), style=style), seed=1).eval()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    model.load_state_dict(upcycle(dense.state_dict(), model))
    ids = tokens(2, 12)
    torch.testing.assert_close(model(ids).logits_BTV, dense(ids).logits_BTV, atol=1e-5, rtol=1e-4)
    after = model.state_dict()
    assert all(torch.equal(after[n], own[n]) for n in own if ".router." in n or ".balance." in n)
    assert all(torch.equal(value, before[n]) for n, value in dense.state_dict().items())


def test_with_switch_weights_each_part_is_multiplied_with_its_probability():
    dense = randomised(transformer("dense", n_layers=1))
    model = transformer(experts(4, 1), n_layers=1)
    model.load_state_dict(upcycle(dense.state_dict(), model))
    with torch.no_grad():
        model.blocks[0].feed_forward.router.weight_ED.zero_()
    x = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0))
    mine, theirs = (m.blocks[0].feed_forward(x).y_BTD for m in (model, dense))
    torch.testing.assert_close(mine, theirs / 4)


@pytest.mark.parametrize(
    ("changes", "style", "key"),
    [
        ({"granularity": 2}, "gpt2", "granularity"),
        ({"n_shared": 1}, "gpt2", "n_shared"),
        ({}, "llama", "init"),  # gated, and biases
    ],
)
def test_what_cannot_be_a_copy_is_refused(changes, style, key):
    model = transformer(experts(4, 2, **changes), style=style)
    with pytest.raises(Refused) as refusal:
        upcycle(transformer("dense").state_dict(), model)
    assert refusal.value.key == key


def test_other_widths_are_refused():
    with pytest.raises(Refused, match="does not fit"):
        upcycle(transformer("dense", d_ff=48).state_dict(), transformer(experts(4, 2)))
