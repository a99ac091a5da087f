"""Learning rates at their ends and in between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config.root import Budget
from llm.optimizer.adamw import AdamW
from llm.optimizer.schedule import WSD, Constant, Cosine, Linear, warm
from llm.training.outcome import Course
from llm.training.state import TrainState

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
    assert warm(0.0, 0, 0.0) == 1


def test_lr_at_joins_both():
    recipe = AdamW(
        lr=2.0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, warmup=0.1, schedule=Cosine()
    )
    assert recipe.lr_at(4, 0.04, 0.05) == pytest.approx(2 * 0.5 * Cosine()(0.04))
    assert recipe.lr_at(50, 0.5, 0.51) == pytest.approx(1.1)
    assert recipe.lr_at(100, 1.3, 1.31) == pytest.approx(0.2)  # minutes may be overrun


@pytest.mark.parametrize("budget", ["40steps", "40960tok", "4epochs", "4.096e10flops"])
def test_a_share_counts_the_step_that_is_made_as_steps_do(budget):
    """A tenth of 40 steps and 4 steps are the same warm-up: a quarter of the rate at step 0."""
    at = TrainState()
    course = Course(Budget.parse(budget), at, 32, 32, 320, 10**6, 1.0)
    assert course.steps == 40
    for step in range(40):
        at.step = step
        assert warm(0.1, step, course.reached) == pytest.approx(warm(4, step, course.reached))
        assert course.reached == pytest.approx(course.share + 1 / 40)


def test_a_budget_of_minutes_expects_the_first_step_and_then_goes_by_the_mean():
    at = TrainState()
    course = Course(Budget.parse("2min"), at, 32, 32, 320, 10**6, 3.0)
    assert warm(0.1, 0, course.reached) == pytest.approx(3 / 12)
    at.step, at.seconds = 2, 4.0
    assert warm(0.1, 2, course.reached) == pytest.approx(6 / 12)
