"""What a few seeds can say: means with intervals, paired comparisons, how many seeds would do.

Student's t by a continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8,
evaluated as Lentz does); SciPy judges it in the tests and is not needed here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


def t_cdf(t: float, df: float) -> float:
    """P(T ≤ t) for Student's t with `df` degrees of freedom."""
    tail = 0.5 * _beta_share(df / (df + t * t), df / 2, 0.5)
    return 1 - tail if t > 0 else tail


def t_quantile(p: float, df: float) -> float:
    """The t with P(T ≤ t) = p, by bisection."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Mean:
    """The mean of n values; `half` is half the width of its interval, None for one value."""

    n: int
    mean: float
    sd: float | None
    half: float | None


def mean_interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """Mean with Student's interval: mean ± t · sd / √n."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(1, mean, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Mean(n, mean, sd, t_quantile((1 + level) / 2, n - 1) * sd / math.sqrt(n))


Verdict = Literal["better", "worse", "unresolved"]


@dataclass(frozen=True)
class Comparison:
    """One against another, seed by seed.

    difference: mean of (this − that) over the seeds that both have, with its interval
    verdict: "better" where this is lower and the test resolves it at the level asked
    p: two-sided
    seeds_needed: pairs that would resolve the difference as it stands with 80% power; None where
        it is resolved, where one pair tells nothing of the spread, or beyond a thousand
    """

    difference: Mean | None
    verdict: Verdict
    p: float | None
    seeds_needed: int | None


def compare(
    this: Mapping[int, float], that: Mapping[int, float], level: float = 0.95
) -> Comparison:
    """Student's paired test by seed.

    Seeds draw the initialisation and the order of batches of both, so that what they do to both
    alike drops out of the differences.
    """
    common = sorted(this.keys() & that.keys())
    if not common:
        return Comparison(None, "unresolved", None, None)
    differences = [this[seed] - that[seed] for seed in common]
    mean = mean_interval(differences, level)
    if mean.sd is None:
        return Comparison(mean, "unresolved", None, None)
    if mean.sd == 0:
        verdict: Verdict = "unresolved" if mean.mean == 0 else _direction(mean.mean)
        return Comparison(mean, verdict, 1.0 if mean.mean == 0 else 0.0, None)
    t = mean.mean / (mean.sd / math.sqrt(mean.n))
    p = 2 * (1 - t_cdf(abs(t), mean.n - 1))
    if p < 1 - level:
        return Comparison(mean, _direction(mean.mean), p, None)
    return Comparison(mean, "unresolved", p, seeds_needed(mean.mean, mean.sd, level))


def _direction(difference: float) -> Verdict:
    return "better" if difference < 0 else "worse"


def seeds_needed(
    difference: float, sd: float, level: float = 0.95, power: float = 0.8, most: int = 1000
) -> int | None:
    """The least n with |difference| ≥ (t_{(1+level)/2} + t_power) · sd / √n, at n − 1 degrees.

    The usual approximation of the noncentral t; None beyond `most`.
    """
    if difference == 0:
        return None

    def resolves(n: int) -> bool:
        reach = t_quantile((1 + level) / 2, n - 1) + t_quantile(power, n - 1)
        return abs(difference) >= reach * sd / math.sqrt(n)

    if not resolves(most):
        return None
    low, high = 1, most  # low does not resolve
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if resolves(middle) else (middle, high)
    return high


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta_share(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x)
    log_front -= math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) + math.log(a)
    tiny = 1e-300
    d = 1 / _not_zero(1 - (a + b) * x / (a + 1), tiny)
    c, fraction = 1.0, d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d, tiny)
            c = _not_zero(1 + term / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
