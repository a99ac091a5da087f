"""Groups by role, and steps judged by torch's unfused AdamW."""

import pytest
import torch
from torch import nn

from llm.config.errors import Refused
from llm.layers.roles import role_of
from llm.optimizer.adamw import AdamW
from llm.optimizer.schedule import Constant
from tests.toy_models import FEED_FORWARDS, POSITIONS, STYLES, randomised, tokens, transformer


def recipe(**changes) -> AdamW:
    settings = {
        "lr": 1e-2,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "warmup": 0.0,
        "schedule": Constant(),
    }
    return AdamW(**{**settings, **changes})


@pytest.mark.parametrize("moe", FEED_FORWARDS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("style", STYLES)
def test_matrices_decay_and_nothing_else(moe, position, style):
    model = transformer(moe, position, style, n_kv_heads=2)
    optimizer = recipe().optimizer(model)
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    everything = list(model.named_parameters())
    assert len(decays) == len(everything) == sum(len(g["params"]) for g in optimizer.param_groups)
    for name, parameter in everything:
        table = name in ("embedding", "head.weight", "position.weight")
        matrix = parameter.ndim > 1 and not table and not name.endswith(("bias_EF", "bias_ED"))
        assert decays[id(parameter)] == (0.1 if matrix else 0.0), name
        assert role_of(parameter) in ("matrix", "expert", "router") or not matrix


def test_a_tied_embedding_is_a_head_for_the_accounts_and_does_not_decay():
    assert role_of(transformer(style="gpt2").embedding) == "head"
    untied = transformer(style="llama")
    assert role_of(untied.embedding) == "embedding" and role_of(untied.head.weight) == "head"


def test_a_parameter_without_a_role_is_named():
    with pytest.raises(TypeError, match=r"shape \(3, 2\) declares no role"):
        recipe().optimizer(nn.Linear(2, 3))


@pytest.mark.parametrize("moe", FEED_FORWARDS)
def test_steps_are_those_of_torch_unfused(moe):
    mine, theirs = randomised(transformer(moe)), randomised(transformer(moe))
    optimizer = recipe().optimizer(mine)
    decayed = [p for p in theirs.parameters() if p.role in ("matrix", "expert", "router")]
    others = [p for p in theirs.parameters() if p.role not in ("matrix", "expert", "router")]
    judge = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=False,
        foreach=False,
    )
    for step in range(8):
        for model, opt in ((mine, optimizer), (theirs, judge)):
            opt.zero_grad()
            output = model(tokens(2, 8, step), tokens(2, 8, step + 100))
            (output.loss_sum / 16 + sum(output.aux.values())).backward()
            opt.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_one_step_by_hand():
    """θ ← θ(1 − lr·λ) − lr · m̂ / (√v̂ + ε), decoupled: the decay knows nothing of the gradient."""
    model = randomised(transformer())
    weight = model.blocks[0].attention.query.weight
    optimizer, before = recipe(eps=1e-3).optimizer(model), weight.detach().clone()
    model(tokens(2, 8), tokens(2, 8, 1)).loss_sum.backward()
    gradient = weight.grad.clone()
    optimizer.step()
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-3)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_two_betas():
    with pytest.raises(Refused, match="betas: are two numbers, not 3"):
        recipe(betas=[0.9, 0.9, 0.9])
