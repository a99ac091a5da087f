"""How often the intervals of a report hold the truth, where the truth is known.

    python experiments/report/coverage.py

Losses are made by L = E + A/N^a + B/D^b with normal noise, thousands of times: 30 runs of six sizes
and five lengths, and twelve of four and three. The law is fitted, and its 95% bootstrap intervals
of E, a and b are looked at. Then arms of two to five seeds: intervals of the leaderboard's means,
and how often the paired test calls two equal arms different (meant: 5%). Behind each figure is
twice its standard error, 1.4% for the fits. Exit code 1 where an interval covers less than 90 or
more than 97%. Some minutes on two cores.
"""

import argparse
import itertools
import math
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from llm.report.scaling import bootstrap_law, fit_law
from llm.report.statistics import compare, mean_interval

TRUE = {"E": 0.47, "A": 30.0, "a": 0.34, "B": 120.0, "b": 0.41}
#: Nats: the spread over seeds of small models on tinytown.
NOISE = 0.004


def runs(
    sizes: int, lengths: int, noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, D, L) of a grid over two orders of magnitude each."""
    grid = itertools.product(np.geomspace(1e5, 1e7, sizes), np.geomspace(1e6, 1e8, lengths))
    n, d = np.array(list(grid)).T
    loss = TRUE["E"] + TRUE["A"] / n ** TRUE["a"] + TRUE["B"] / d ** TRUE["b"]
    return n, d, loss + np.random.default_rng(seed).normal(0, noise, len(n))


def held(sizes: int, lengths: int, draws: int, seed: int) -> list[str]:
    """Which of E, a and b lie in their intervals in one trial."""
    n, d, loss = runs(sizes, lengths, NOISE, seed)
    # From the true exponents: whether the search finds them is tested elsewhere.
    law = fit_law(n, d, loss, (TRUE["a"], TRUE["b"]))
    found = bootstrap_law(n, d, loss, law, draws, seed=seed)
    return [name for name, i in found.items() if i.low <= TRUE[name] <= i.high]


def of_seeds(n: int, trials: int) -> tuple[float, float]:
    """Shares of trials in which the mean's interval holds, and in which equal arms differ."""
    draw = np.random.default_rng(n)
    shared = draw.normal(0, 0.003, (trials, 1, n))  # what a seed does to both arms
    arms = 1.0 + shared + draw.normal(0, 0.004, (trials, 2, n))
    inside = differ = 0
    for one, other in arms:
        mean = mean_interval(list(one))
        assert mean.half is not None
        inside += abs(mean.mean - 1.0) <= mean.half
        differ += compare(dict(enumerate(one)), dict(enumerate(other))).verdict != "unresolved"
    return inside / trials, differ / trials


def told(share: float, trials: int) -> str:
    return f"{share:6.1%} ± {2 * math.sqrt(share * (1 - share) / trials):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of each design of a fit")
    parser.add_argument("--draws", type=int, default=100, help="of each bootstrap")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    shares = []
    print("95% intervals of the scaling fit hold the truth in")
    with ProcessPoolExecutor(options.processes) as pool:
        for sizes, lengths in ((6, 5), (4, 3)):
            trial = partial(held, sizes, lengths, options.draws)
            each = pool.map(trial, range(options.trials), chunksize=10)
            counts = Counter(name for names in each for name in names)
            found = {name: counts[name] / options.trials for name in ("E", "a", "b")}
            shares += found.values()
            line = ", ".join(f"{name} {told(x, options.trials)}" for name, x in found.items())
            print(f"  {sizes * lengths} runs: {line}", flush=True)
    trials = 5 * options.trials
    print("95% intervals of an arm's mean hold it in, and equal arms are called different in")
    for n in (2, 3, 5):
        inside, differ = of_seeds(n, trials)
        shares.append(inside)
        print(f"  {n} seeds: {told(inside, trials)}, {told(differ, trials)}")
    sys.exit(not all(0.90 <= share <= 0.97 for share in shares))


if __name__ == "__main__":
    main()
