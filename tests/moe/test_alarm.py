"""The alarm: soon where experts collapse, silent where loads are merely noisy."""

import json

import numpy as np
import pytest
import torch

from llm.moe.alarm import CollapseAlarm, active_experts
from tests.toy_models import VOCAB, experts, transformer


def loads(rng, share_LE, choices):
    """Shares of `choices` assignments drawn at random: what a step of a batch shows."""
    return torch.from_numpy(rng.multinomial(choices, share_LE) / choices).float()


def ring(alarm, shares, choices, first=1):
    """Steps and lines of the alarms over a series of true shares (steps, L, E)."""
    rng = np.random.default_rng(0)
    said = []
    for step, share_LE in enumerate(shares, first):
        line = alarm.watch(step, loads(rng, share_LE, choices))
        if line:
            said.append((step, line))
    return said


def skewed(n_experts, largest_over_mean):
    """One expert as busy as that, the others in even steps below it."""
    share_E = np.linspace(1.0, 0.4, n_experts)
    share_E *= (1 - largest_over_mean / n_experts) / share_E[1:].sum()
    share_E[0] = largest_over_mean / n_experts
    return share_E


@pytest.mark.parametrize("tokens", [8, 64, 2048])
@pytest.mark.parametrize(
    ("n_experts", "top_k", "largest"),
    [(2, 1, 1.6), (4, 1, 2.7), (4, 2, 1.9), (8, 1, 2.7), (8, 2, 2.7), (64, 1, 2.7), (64, 8, 2.7)],
)
def test_healthy_runs_are_left_in_peace(n_experts, top_k, largest, tokens):
    """Loads as skewed as sound runs show them, in batches down to eight tokens."""
    shares = np.broadcast_to(skewed(n_experts, largest), (400, 3, n_experts))
    alarm = CollapseAlarm(top_k, tokens)
    assert ring(alarm, shares, tokens * top_k) == []
    assert alarm.collapsed == 0


def collapsed(n_experts, top_k, rest):
    share_E = np.full(n_experts, rest / n_experts)
    share_E[:top_k] += (1 - rest) / top_k
    return share_E


@pytest.mark.parametrize("tokens", [64, 2048])
@pytest.mark.parametrize("rest", [0.0, 0.08])
@pytest.mark.parametrize(
    ("n_experts", "top_k"), [(2, 1), (4, 1), (4, 2), (4, 3), (8, 2), (64, 1), (64, 8)]
)
def test_a_collapse_is_reported_within_fifty_steps(n_experts, top_k, rest, tokens):
    shares = np.tile(np.full((2, n_experts), 1 / n_experts), (300, 1, 1))
    shares[103:, 1] = collapsed(n_experts, top_k, rest)
    alarm = CollapseAlarm(top_k, tokens)
    said = ring(alarm, shares, tokens * top_k)
    assert len(said) == 1, "said once"
    step, line = said[0]
    assert 104 + 10 < step <= 104 + 50
    assert "layer 1 " in line and f"of {n_experts} experts" in line and "\n" not in line
    assert "moe.balance_loss" in line and "optimizer.lr" in line
    assert alarm.collapsed == 1


def test_a_run_that_starts_collapsed():
    shares = np.tile(collapsed(8, 1, 0.0), (60, 1, 1))
    ((step, _),) = ring(CollapseAlarm(1, 512), shares, 512)
    assert step <= 50


def test_half_of_the_experts_idle_and_the_others_even():
    share_E = np.r_[np.full(8, 1 / 8), np.zeros(8)]
    ((_, line),) = ring(CollapseAlarm(2, 512), np.tile(share_E, (100, 1, 1)), 1024)
    assert ", 8 idle" in line


def test_a_dip_of_a_few_steps_is_none():
    shares = np.tile(np.full((1, 8), 1 / 8), (200, 1, 1))
    shares[100:112] = collapsed(8, 1, 0.0)
    assert ring(CollapseAlarm(1, 512), shares, 512) == []


def test_said_again_only_when_it_worsens_or_returns():
    even, bad, worse = (
        np.full(8, 1 / 8),
        np.r_[0.8, 0.1, 0.1, np.zeros(5)],  # 1.9 effective experts
        np.r_[0.96, 0.04, np.zeros(6)],  # 1.2
    )
    shares = np.tile(even, (900, 4, 1))
    shares[100:400, 0] = bad
    shares[200:400, 0] = worse
    shares[250:400, 1:3] = bad  # from one layer to three
    shares[700:, 2] = bad
    steps = [step for step, _ in ring(CollapseAlarm(1, 2048), shares, 2048)]
    assert len(steps) == 4
    assert [min(s for s in (100, 200, 250, 700) if 0 < step - s <= 50) for step in steps] == [
        100,
        200,
        250,
        700,
    ]


def test_all_experts_for_every_token_is_no_collapse():
    shares = np.tile(np.full(4, 0.25), (100, 2, 1))
    assert ring(CollapseAlarm(4, 64), shares, 256) == []


def test_a_resumed_alarm_goes_on_exactly():
    shares = np.tile(np.full((2, 8), 1 / 8), (300, 1, 1))
    shares[90:, 1] = collapsed(8, 1, 0.05)
    rng = np.random.default_rng(3)
    series = [loads(rng, share_LE, 256) for share_LE in shares]
    whole, lines = CollapseAlarm(1, 256), []
    for step, load_LE in enumerate(series, 1):
        lines.append(whole.watch(step, load_LE))
    for cut in (0, 3, 101, 118, 200):
        first, second = CollapseAlarm(1, 256), CollapseAlarm(1, 256)
        again = [first.watch(step, load_LE) for step, load_LE in enumerate(series[:cut], 1)]
        kept = first.state_dict()
        told = json.dumps(kept)
        for step, load_LE in enumerate(series[cut:], cut + 1):
            first.watch(step, load_LE)
        assert json.dumps(kept) == told  # a checkpoint is written while training goes on
        second.load_state_dict(json.loads(told))
        again += [second.watch(step, t) for step, t in enumerate(series[cut:], cut + 1)]
        assert again == lines
        assert second.state_dict() == whole.state_dict()


def test_a_model_knows_how_many_experts_a_token_uses():
    assert active_experts(transformer("dense")) == 1
    for n_experts, top_k in ((4, 1), (4, 2), (6, 5)):
        assert active_experts(transformer(experts(n_experts, top_k))) == top_k


@pytest.mark.parametrize(("balance", "lr", "rings"), [(0.0, 0.2, True), (0.01, 0.01, False)])
def test_a_run_that_collapses_and_one_that_does_not(balance, lr, rings):
    """Top-1 of eight on a Markov chain: without balance and with a rate far too high, nearly all
    tokens end at one or two experts within the first steps."""
    torch.manual_seed(0)
    model = transformer(experts(8, 1, balance_loss=balance, z_loss=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    alarm = CollapseAlarm(active_experts(model), tokens=96)
    chain_VV = (2 * torch.randn(VOCAB, VOCAB)).softmax(-1)
    said = []
    for step in range(1, 56):
        tokens = [torch.randint(VOCAB, (8,))]
        for _ in range(12):
            tokens.append(chain_VV[tokens[-1]].multinomial(1)[:, 0])
        ids_BT = torch.stack(tokens, 1)
        output = model(ids_BT[:, :-1], ids_BT[:, 1:])
        (output.loss_sum / output.n_tokens + sum(output.aux.values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        said.append(alarm.watch(step, output.router["load_E"]))
    assert any(said) == rings
