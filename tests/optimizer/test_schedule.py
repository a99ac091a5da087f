"""Learning rates at their ends and in between."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.optimizer.adamw import AdamW
from llm.optimizer.schedule import WSD, Constant, Cosine, Linear, warm

SCHEDULES = [Cosine(), Cosine(final=0.0), Linear(), Linear(final=0.3), WSD(), WSD(decay=1.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_from_one_to_final(schedule):
    assert schedule(0.0) == pytest.approx(1)
    assert schedule(1.0) == pytest.approx(schedule.final)


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 1))
def test_never_rises(schedule, a, b):
    assert schedule(min(a, b)) >= schedule(max(a, b)) - 1e-12


def test_half_way():
    assert Cosine(final=0.1)(0.5) == pytest.approx(0.55)
    assert Linear(final=0.2)(0.5) == pytest.approx(0.6)
    assert WSD(decay=0.2)(0.8) == 1
    assert WSD(decay=0.2)(0.9) == pytest.approx(0.5)
    assert WSD(decay=0.0)(1.0) == 1
    assert Constant()(0.7) == 1


def test_warm_up_in_steps():
    assert [warm(4, step, 0.5) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warm(1, 0, 0.0) == 1


def test_warm_up_as_a_share_of_the_budget():
    assert warm(0.1, 7, 0.05) == pytest.approx(0.5)
    assert warm(0.1, 7, 0.1) == warm(0.1, 7, 0.9) == 1
    assert 0 < warm(0.1, 0, 0.0) <= 1e-3  # the first step moves, hardly
    assert warm(0.0, 0, 0.0) == 1


def test_lr_at_joins_both():
    recipe = AdamW(
        lr=2.0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, warmup=0.1, schedule=Cosine()
    )
    assert recipe.lr_at(5, 0.05) == pytest.approx(2 * 0.5 * Cosine()(0.05))
    assert recipe.lr_at(50, 0.5) == pytest.approx(1.1)
    assert recipe.lr_at(100, 1.3) == pytest.approx(0.2)  # a budget of minutes may be overrun
    assert math.isfinite(recipe.lr_at(0, 0.0))
