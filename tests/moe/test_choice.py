"""Capacity and choice by the experts: who is served, in what order, and who must never matter."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from llm.config.errors import Refused
from llm.moe.choice import by_experts, capacity, within_capacity
from tests.toy_models import context_of, experts, randomised, shape


def one_by_one(ranked: torch.Tensor, top_k: int, n_experts: int, limit: int):
    """The definition: tokens come one after another, and each takes its best experts with room."""
    served = []
    for row in ranked.tolist():
        taken = [0] * n_experts
        for candidates in row:
            with_room = [e for e in candidates if taken[e] < limit][:top_k]
            for e in with_room:
                taken[e] += 1
            served.append(set(with_room))
    return served


def rankings(b: int, t: int, n_experts: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    favour = torch.linspace(1.5, 0, n_experts)  # some experts are wanted more
    return (torch.randn(b, t, n_experts, generator=generator) + favour).topk(width).indices


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 2.0])
@pytest.mark.parametrize(("top_k", "more"), [(1, 0), (2, 0), (1, 1), (2, 1)])
def test_tokens_are_served_as_if_they_came_one_after_another(top_k, more, factor):
    limit = capacity(factor, 20, top_k, 5)
    for seed in range(5):
        ranked = rankings(3, 20, 5, top_k + more, seed)
        chosen, kept = within_capacity(ranked, top_k, 5, factor)
        mine = [
            {e for e, k in zip(es, ks, strict=True) if k}
            for es, ks in zip(
                chosen.flatten(0, 1).tolist(), kept.flatten(0, 1).tolist(), strict=True
            )
        ]
        if more:  # after a few rounds of sending on: not everybody may have been
            exact = one_by_one(ranked, top_k, 5, limit)
            assert sum(a == b for a, b in zip(mine, exact, strict=True)) >= 0.9 * len(mine)
        else:  # dropped where the place is taken, whatever else the token has
            assert mine == one_by_one_fixed(ranked, 5, limit)
        counts = torch.zeros(3, 5).index_put(
            (torch.arange(3)[:, None, None].expand_as(chosen)[kept], chosen[kept]),
            torch.tensor(1.0),
            accumulate=True,
        )
        assert counts.max() <= limit


def one_by_one_fixed(ranked: torch.Tensor, n_experts: int, limit: int):
    served = []
    for row in ranked.tolist():
        taken = [0] * n_experts
        for candidates in row:
            served.append({e for e in candidates if taken[e] < limit})
            for e in candidates:
                taken[e] += 1
    return served


@pytest.mark.parametrize("top_k", [1, 2])
def test_measured_drops_are_those_of_the_binomial(top_k):
    """Trap 6: E[(X − C)₊] / (T/N) with X ~ Binomial(T, 1/N), for K = 1; K/N for K choices."""
    b, t, n = 400, 64, 8
    generator = torch.Generator().manual_seed(0)
    ranked = torch.rand(b, t, n, generator=generator).topk(top_k).indices
    for factor in (1.0, 1.25, 2.0):
        limit = capacity(factor, t, top_k, n)
        _, kept = within_capacity(ranked, top_k, n, factor)
        x = torch.arange(t + 1)
        chance = torch.tensor(stats.binom.pmf(x.numpy(), t, top_k / n))
        expected = ((x - limit).clamp_min(0) * chance).sum().item() / (t * top_k / n)
        assert 1 - kept.float().mean().item() == pytest.approx(expected, rel=0.03, abs=2e-4)


@pytest.mark.parametrize("overflow", ["residual", "next"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_what_is_later_or_in_another_row_pushes_nobody_out(overflow, top_k):
    """Trap 3. In token order, whatever the scores; and each sequence has its own places."""
    layer = randomised(
        experts(4, top_k, capacity_factor=1.0, eval_capacity_factor=1.0, overflow=overflow)(shape())
    ).eval()
    generator = torch.Generator().manual_seed(1)
    dropped = 0.0
    for _ in range(20):
        x = torch.randn(2, 12, 16, generator=generator)
        y, _, router = layer(x)
        dropped += router["dropped"].item()
        later = x.clone()
        later[0, 7:] = 3 * torch.randn(5, 16, generator=generator)
        again = layer(later).y_BTD
        torch.testing.assert_close(again[0, :7], y[0, :7])
        torch.testing.assert_close(again[1], y[1])
    assert dropped > 1  # there was something to push out


def test_expert_choice_is_not_causal_and_says_so():
    """Each expert takes its best tokens of a sequence: a later one takes an earlier one's place."""
    layer = randomised(experts(4, 1, choice="expert", balance="none")(shape())).eval()
    generator = torch.Generator().manual_seed(1)
    changed = 0
    for _ in range(20):
        x = torch.randn(2, 12, 16, generator=generator)
        later = x.clone()
        later[0, 11] = 3 * torch.randn(16, generator=generator)
        before, after = layer(x), layer(later)
        changed += not torch.allclose(before.y_BTD[0, :11], after.y_BTD[0, :11])
        torch.testing.assert_close(after.y_BTD[1], before.y_BTD[1])  # another row never does
        torch.testing.assert_close(after.router["load_E"], torch.full((4,), 0.25))
    assert changed > 5


def test_experts_take_their_best():
    scores = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    taken, limit = by_experts(scores, 1, 3)
    assert limit == 3 and (taken.sum(1) == 3).all()
    for b, e in [(0, 0), (1, 2)]:
        assert taken[b, :, e].nonzero().flatten().tolist() == sorted(
            scores[b, :, e].argsort(descending=True)[:3].tolist()
        )


def test_overflow_passes_by_the_residual_only():
    """One place for each expert, all tokens alike: the first is served, the others get nothing, and
    neither they nor the router hear of it in the backward pass."""
    layer = randomised(experts(4, 1, capacity_factor=0.5, balance="none")(shape(bias=False)))
    x = torch.ones(1, 8, 16).requires_grad_()
    y = layer(x).y_BTD
    assert y[0, 0].abs().min() > 0 and not y[0, 1:].any()
    y.square().sum().backward()
    assert x.grad[0, 0].abs().max() > 0 and not x.grad[0, 1:].any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_capacity_that_holds_all_changes_nothing():
    plain = randomised(experts(4, 2)(shape()))
    roomy = randomised(experts(4, 2, capacity_factor=4.0, overflow="next")(shape()))
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        (plain(x).y_BTD, *_gradients(plain, x)),
        (roomy(x).y_BTD, *_gradients(roomy, x)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert roomy(x).router["dropped"] == 0


def _gradients(layer, x):
    layer.zero_grad()
    layer(x).y_BTD.square().sum().backward()
    return [p.grad.clone() for p in layer.parameters()]


@pytest.mark.parametrize("overflow", ["residual", "next"])
def test_balance_hears_what_tokens_ask_for_not_what_they_get(overflow):
    plain = randomised(experts(4, 1)(shape()))
    tight = randomised(experts(4, 1, capacity_factor=1.0, overflow=overflow)(shape()))
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1)) + 0.5
    one, other = plain(x), tight(x)
    assert other.router["dropped"] > 0.02
    assert torch.equal(one.router["load_E"], other.router["load_E"])
    assert one.router["load_E"].max() > 0.3
    assert one.aux["balance_loss"] == other.aux["balance_loss"]


def test_evaluation_has_its_own_factor_and_a_cache_none():
    layer = randomised(experts(4, 1, capacity_factor=0.5, eval_capacity_factor=1.0)(shape()))
    x = torch.ones(1, 8, 16)
    assert layer(x).router["dropped"] == pytest.approx(7 / 8)
    assert layer.eval()(x).router["dropped"] == pytest.approx(6 / 8)
    behind = replace(context_of(x), cache=object())
    assert layer(x, behind).y_BTD.abs().amin(-1).min() > 0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"choice": "expert", "balance": "switch"}, "balance"),
        ({"choice": "expert", "balance": "none", "capacity_factor": 1.0}, "capacity_factor"),
        ({"top_k": 2, "choice": "expert", "balance": "none"}, "router.renormalize"),
        ({"top_k": 4, "overflow": "next"}, "overflow"),
        ({"balance": "load"}, "balance"),
        ({"balance": "swich"}, "balance"),
        ({"granularity": 5}, "granularity"),
    ],
)
def test_contradictions_are_refused(changes, key):
    with pytest.raises(Refused) as refusal:
        experts(4, **changes)(shape())
    assert refusal.value.key == key and "\n" not in str(refusal.value)
