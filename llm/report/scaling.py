"""Scaling laws from runs: the parametric form and IsoFLOP parabolas, with bootstrap intervals.

    L(N, D) = E + A / N^a + B / D^b          (Hoffmann et al. 2022, approach 3)

Given the exponents, E, A and B enter linearly. So the search runs over (a, b) only, and a least
squares problem with three non-negative unknowns is solved for each pair (variable projection,
Golub and Pereyra 1973): no starting values for E, A and B, and no local minima in them.

N parameters, D tokens, L loss in nats a token
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_GRID = np.linspace(0.05, 1.5, 30)
_LIMITS = (0.01, 2.5)


@dataclass(frozen=True)
class Law:
    """A fitted parametric form; `rmse` of the residuals in nats."""

    E: float
    A: float
    a: float
    B: float
    b: float
    rmse: float

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray | float:
        return self.E + self.A / np.power(n, self.a) + self.B / np.power(d, self.b)


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


def fit_law(
    n: np.ndarray,
    d: np.ndarray,
    loss: np.ndarray,
    near: tuple[float, float] | None = None,
    tolerance: float = 1e-7,
) -> Law:
    """Least squares in loss over all five parameters, E, A and B ≥ 0.

    Args:
        n, d, loss: (runs,) parameters, tokens, nats
        near: exponents to start from; otherwise a grid is searched first
        tolerance: of the exponents
    Raises ValueError for fewer than six runs or for one size or one length only: five parameters
    cannot be told apart then.
    """
    n, d, loss = (np.asarray(x, np.float64) for x in (n, d, loss))
    if len(loss) < 6 or len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
        raise ValueError("needs six runs, of three sizes and three lengths at least")
    # In units of their geometric means, so that A and B are of the size of the loss.
    n_0, d_0 = math.exp(np.log(n).mean()), math.exp(np.log(d).mean())
    log_n, log_d = np.log(n / n_0), np.log(d / d_0)

    def error(a: float, b: float) -> float:
        return _linear(log_n, log_d, loss, a, b)[1]

    if near is None:
        near = min(itertools.product(_GRID, _GRID), key=lambda pair: error(*pair))
    a, b = _simplex_search(error, *near, tolerance)
    (e, big_a, big_b), squares = _linear(log_n, log_d, loss, a, b)
    rmse = math.sqrt(squares / len(loss))
    return Law(float(e), float(big_a * n_0**a), a, float(big_b * d_0**b), b, rmse)


def bootstrap_law(
    n: np.ndarray,
    d: np.ndarray,
    loss: np.ndarray,
    law: Law,
    draws: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of E, a and b from resampled residuals (a function of `seed`).

    Residuals are inflated by √(n / (n − 5)), as five parameters were fitted to them. An interval
    is the estimate ± t at n − 5 degrees × the standard deviation over the draws: percentiles of
    the draws covered 83 to 92% where 95% were meant (30 runs, 60 sets of them).
    """
    from llm.report.statistics import t_quantile

    n, d, loss = (np.asarray(x, np.float64) for x in (n, d, loss))
    generator = np.random.default_rng(seed)
    fitted = np.asarray(law(n, d))
    freedom = max(len(loss) - 5, 1)
    residuals = (loss - fitted) * math.sqrt(len(loss) / freedom)
    residuals = residuals - residuals.mean()
    sample = np.array(
        [_refit(law, n, d, fitted + generator.choice(residuals, len(loss))) for _ in range(draws)]
    )
    reach = t_quantile((1 + level) / 2, freedom) * sample.std(axis=0, ddof=1)
    found = {}
    for i, (name, value) in enumerate((("E", law.E), ("a", law.a), ("b", law.b))):
        half = float(reach[i])
        found[name] = Interval(value, max(value - half, 0.0), value + half)
    return found


def _refit(law: Law, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
    """E, a and b of the least squares near `law`, by Gauss and Newton: a hundred times as fast.

    Where a step leads out of the allowed region, or none lowers the error, the full search.
    """
    log_n, log_d = np.log(n), np.log(d)
    n_0, d_0 = log_n.mean(), log_d.mean()
    x_n, x_d = log_n - n_0, log_d - d_0
    # E, log of A's and of B's term in the middle of the runs, a, b
    log_a = math.log(law.A or 1e-12) - law.a * n_0
    log_b = math.log(law.B or 1e-12) - law.b * d_0
    at = np.array([law.E, log_a, log_b, law.a, law.b])

    def terms(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(p[1] - p[3] * x_n), np.exp(p[2] - p[4] * x_d)

    def squares(p: np.ndarray) -> float:
        residual = loss - p[0] - sum(terms(p))
        return float(residual @ residual)

    now = squares(at)
    for _ in range(30):
        of_n, of_d = terms(at)
        slopes = np.stack([np.ones_like(loss), of_n, of_d, -of_n * x_n, -of_d * x_d], 1)
        step = np.linalg.lstsq(slopes, loss - at[0] - of_n - of_d, rcond=None)[0]
        for _ in range(12):
            if squares(at + step) <= now:
                break
            step = step / 2
        at = at + step
        before, now = now, squares(at)
        low, high = _LIMITS
        if not (at[0] >= 0 and low < at[3] < high and low < at[4] < high and now <= before):
            fit = fit_law(n, d, loss, (law.a, law.b), 1e-4)
            return fit.E, fit.a, fit.b
        if np.abs(step).max() < 1e-6:
            break
    return float(at[0]), float(at[3]), float(at[4])


@dataclass(frozen=True)
class Parabola:
    """Loss against log N at one amount of compute: the size with the lowest loss.

    `inside` says whether that size lies among those that were trained; else it is extrapolated.
    """

    flops: float
    n_best: float
    loss_best: float
    inside: bool
    coefficients: tuple[float, float, float]  # of log(N)², log(N), 1


def isoflop(n: np.ndarray, loss: np.ndarray, flops: float) -> Parabola | None:
    """The parabola of runs of equal compute; None for fewer than three sizes, or no minimum."""
    n, loss = np.asarray(n, np.float64), np.asarray(loss, np.float64)
    if len(np.unique(n)) < 3:
        return None
    x = np.log(n)
    curve = np.polyfit(x - x.mean(), loss, 2)
    if curve[0] <= 0:
        return None
    at = -curve[1] / (2 * curve[0])
    best = float(np.exp(at + x.mean()))
    shift = x.mean()
    second, first, zeroth = curve
    coefficients = (
        float(second),
        float(first - 2 * second * shift),
        float(zeroth - first * shift + second * shift**2),
    )
    lowest = float(np.polyval(curve, at))
    return Parabola(flops, best, lowest, bool(n.min() <= best <= n.max()), coefficients)


def power_law(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(c, k) of y = c · x^k by least squares of the logarithms."""
    k, log_c = np.polyfit(np.log(x), np.log(y), 1)
    return float(np.exp(log_c)), float(k)


def _linear(
    log_n: np.ndarray, log_d: np.ndarray, loss: np.ndarray, a: float, b: float
) -> tuple[tuple[float, float, float], float]:
    """E, A, B ≥ 0 of least squares given the exponents, and the sum of squares.

    With three unknowns the non-negative solution is the best of those that set some to zero and
    come out non-negative in the rest: seven small problems, tried largest first.
    """
    columns = np.stack([np.ones_like(loss), np.exp(-a * log_n), np.exp(-b * log_d)])
    gram, moment, total = columns @ columns.T, columns @ loss, float(loss @ loss)
    best: tuple[tuple[float, float, float], float] | None = None
    for kept in _SUBSETS:
        part = gram[np.ix_(kept, kept)]
        try:
            solution = np.linalg.solve(part, moment[list(kept)])
        except np.linalg.LinAlgError:
            continue
        if (solution < 0).any():
            continue
        full = np.zeros(3)
        full[list(kept)] = solution
        squares = max(total - 2 * float(full @ moment) + float(full @ gram @ full), 0.0)
        if best is None or squares < best[1]:
            best = (float(full[0]), float(full[1]), float(full[2])), squares
        if len(kept) == 3:
            break
    assert best is not None  # a single constant always fits a positive loss
    residuals = loss - np.array(best[0]) @ columns  # more exact than by the moments
    return best[0], float(residuals @ residuals)


_SUBSETS = ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,))


def _simplex_search(
    error: Callable[[float, float], float], a: float, b: float, tolerance: float
) -> tuple[float, float]:
    """The lowest `error` near (a, b), by Nelder and Mead's simplex in two dimensions."""

    def at(point: np.ndarray) -> float:
        outside = np.clip(point, *_LIMITS)
        return error(*outside) * (1 + float(np.abs(point - outside).sum()))

    corners = np.array([(a, b), (a * 1.15, b), (a, b * 1.15)])
    values = [at(corner) for corner in corners]
    for _ in range(300):
        order = np.argsort(values, kind="stable")
        corners, values = corners[order], [values[i] for i in order]
        if np.abs(corners[1:] - corners[0]).max() < tolerance:
            break
        centre = (corners[0] + corners[1]) / 2
        reflected = 2 * centre - corners[2]
        value = at(reflected)
        if value < values[0]:
            further = 3 * centre - 2 * corners[2]
            beyond = at(further)
            better = (further, beyond) if beyond < value else (reflected, value)
            corners[2], values[2] = better
        elif value < values[1]:
            corners[2], values[2] = reflected, value
        else:
            inner = (centre + (reflected if value < values[2] else corners[2])) / 2
            inside = at(inner)
            if inside < min(value, values[2]):
                corners[2], values[2] = inner, inside
            else:
                for i in (1, 2):
                    corners[i] = (corners[0] + corners[i]) / 2
                    values[i] = at(corners[i])
    best = np.clip(corners[int(np.argmin(values))], *_LIMITS)
    return float(best[0]), float(best[1])
