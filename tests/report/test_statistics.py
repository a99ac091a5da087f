"""Intervals and paired tests, judged by SciPy."""

import numpy as np
import pytest
from scipy import stats

from llm.report.statistics import compare, mean_interval, seeds_needed, t_cdf, t_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 7, 29, 400])
def test_students_t_is_scipys(df):
    for t in (-40.0, -3.0, -0.5, 0.0, 0.1, 1.0, 2.5, 12.0):
        assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-10, abs=1e-14)
    for p in (0.01, 0.3, 0.5, 0.8, 0.975, 0.999):
        assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


def test_intervals_and_paired_tests_are_scipys():
    draw = np.random.default_rng(0)
    one = dict(enumerate(draw.normal(1.0, 0.1, 5)))
    other = {seed: value + draw.normal(0.05, 0.02) for seed, value in one.items()}
    values = list(one.values())
    told = mean_interval(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (told.mean - told.half, told.mean + told.half) == pytest.approx((low, high))
    compared = compare(one, other)
    assert compared.p == pytest.approx(stats.ttest_rel(values, list(other.values())).pvalue)
    assert compared.verdict == "better" and compare(other, one).verdict == "worse"


def test_only_common_seeds_are_paired_and_little_is_claimed_of_little():
    assert compare({1: 1.0}, {2: 2.0}).difference is None
    alone = compare({1: 1.0, 2: 1.5}, {1: 2.0})
    assert (alone.verdict, alone.p, alone.seeds_needed) == ("unresolved", None, None)
    same = compare({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0})
    assert same.verdict == "unresolved"


def test_the_seeds_that_would_resolve_have_the_power_that_is_promised():
    n = seeds_needed(0.02, 0.03)
    draw = np.random.default_rng(1)
    samples = draw.normal(0.02, 0.03, (4000, n))
    power = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
    assert 0.77 < power < 0.86
    assert seeds_needed(0.02, 0.3) is None or seeds_needed(0.02, 0.3) > 500
    assert seeds_needed(1e-9, 1.0) is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5])
def test_nominal_intervals_cover(n):
    draw = np.random.default_rng(n)
    samples = draw.normal(1.0, 0.1, (2000, n))
    told = [mean_interval(list(row)) for row in samples]
    covered = np.mean([abs(m.mean - 1.0) <= m.half for m in told])
    assert 0.935 < covered < 0.965
