"""The guard leaves out what stands out, and nothing of a healthy run."""

import math
import random

import pytest

from llm.training.guard import SpikeGuard


def after(steps: int, guard: SpikeGuard | None = None, seed: int = 0) -> SpikeGuard:
    """A guard that has seen a healthy run: a falling, noisy loss and norms over a decade."""
    guard, dice = guard or SpikeGuard(10.0, 3), random.Random(seed)
    for step in range(steps):
        loss = 5.5 * math.exp(-step / 200) + 1.5 + dice.gauss(0, 0.1)
        assert guard.accepts(loss, 10 ** dice.uniform(-0.5, 0.2) * (1 + 5 * math.exp(-step / 20)))
    return guard


def test_a_healthy_run_is_left_alone():
    assert after(2000).skipped == 0


@pytest.mark.parametrize(
    ("loss", "norm"), [(9.0, 1.0), (1.5, 40.0), (math.nan, 1.0), (1.5, math.inf)]
)
def test_a_spike_is_left_out_and_changes_no_standard(loss, norm):
    guard = after(500)
    for count in (1, 2, 3):
        assert not guard.accepts(loss, norm)
        assert (guard.in_a_row, guard.skipped) == (count, count)
    assert guard.exhausted
    assert guard.accepts(2.0, 1.0)
    assert not guard.exhausted and guard.skipped == 3


def test_without_a_factor_only_what_is_not_finite():
    guard = after(500, SpikeGuard(None, 3))
    assert guard.accepts(90.0, 1e6)
    assert not guard.accepts(math.nan, 1.0)


def test_a_restored_guard_judges_alike():
    guard, other = after(100), SpikeGuard(10.0, 3)
    guard.accepts(math.nan, 1.0)
    other.load_state_dict(guard.state_dict())
    assert other.state_dict() == guard.state_dict()
    assert not other.accepts(20.0, 1.0) and other.in_a_row == 2


def test_a_steady_loss_may_move_by_half_a_nat():
    """A deviation of nothing at all makes no spike of a little."""
    guard = SpikeGuard(10.0, 3)
    for _ in range(50):
        assert guard.accepts(0.01, 0.1)
    assert guard.accepts(0.5, 0.9)
