"""Figures of what experts take, by hand."""

import math

import numpy as np
import pytest

from llm.moe.alarm import effective_experts
from llm.moe.observatory import agreement, information, max_violation, taken_by, terms


def test_who_takes_what_by_hand():
    choices_LMK = np.array([[[0, 1], [0, 2], [2, 1]], [[2, 0], [2, 0], [-1, 1]]])
    group_M = np.array([0, 0, 1])
    taken_LGE = taken_by(choices_LMK, group_M, 2, 3)
    assert taken_LGE.tolist() == [[[2, 1, 1], [0, 1, 1]], [[2, 0, 2], [0, 1, 0]]]


def test_largest_violation_and_effective_number():
    load_LE = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert max_violation(load_LE) == pytest.approx([0.0, 1.0, 3.0])
    assert effective_experts(load_LE) == pytest.approx([4.0, 2.0, 1.0])


def test_agreement_counts_the_first_expert_and_the_set():
    before_LMK = np.array([[[0, 1], [2, 3], [1, 0], [3, 2]]])
    now_LMK = np.array([[[0, 1], [3, 2], [1, 2], [0, 1]]])
    first_L, all_L = agreement(before_LMK, now_LMK)
    assert first_L == pytest.approx([0.5])
    assert all_L == pytest.approx([(2 + 2 + 1 + 0) / 8])
    assert agreement(before_LMK, before_LMK)[1] == pytest.approx([1.0])
    nobody_LMK = np.where(now_LMK > 1, -1, now_LMK)  # what nobody took agrees with nothing
    assert agreement(nobody_LMK, nobody_LMK)[1] == pytest.approx([1.0])


def test_information_is_that_of_scipys_entropies():
    from scipy.stats import entropy

    taken_LGE = np.random.default_rng(0).integers(0, 50, (3, 5, 4))
    taken_LGE[0, 2, 1] = 0
    for layer, taken_GE in enumerate(taken_LGE):
        expected = (
            entropy(taken_GE.sum(0), base=2)
            + entropy(taken_GE.sum(1), base=2)
            - entropy(taken_GE.ravel(), base=2)
        )
        assert information(taken_LGE)[layer] == pytest.approx(expected)


def test_information_of_the_extremes():
    same_LGE = np.array([[[10, 30], [20, 60]]])
    apart_LGE = np.array([[[40, 0, 0, 0], [0, 40, 0, 0], [0, 0, 40, 0], [0, 0, 0, 40]]])
    assert information(same_LGE) == pytest.approx([0.0], abs=1e-12)
    assert information(apart_LGE) == pytest.approx([math.log2(4)])
    assert (terms(apart_LGE)[0] > 0).sum() == 4
    assert information(np.zeros((1, 2, 2), int)) == pytest.approx([0.0])
