"""Learning-rate schedules: a factor of the peak, as a function of how much is done."""

import math

from llm.config.types import Fraction, NonNegativeFloat


class Cosine:
    """Falls from 1 to `final` along half a cosine (Loshchilov and Hutter 2016)."""

    def __init__(self, *, final: Fraction = 0.1):
        self.final = final

    def __call__(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Linear:
    """Falls from 1 to `final` in a straight line."""

    def __init__(self, *, final: Fraction = 0.0):
        self.final = final

    def __call__(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


class WSD:
    """Stays at 1 and falls to `final` in a straight line over the last `decay` of the budget.

    Warm-up, stable, decay (Hu et al. 2024, MiniCPM).
    """

    def __init__(self, *, decay: Fraction = 0.2, final: Fraction = 0.0):
        self.decay, self.final = decay, final

    def __call__(self, progress: float) -> float:
        if not self.decay or progress <= 1 - self.decay:
            return 1.0
        return 1 - (1 - self.final) * (progress - (1 - self.decay)) / self.decay


class Constant:
    """Stays at 1."""

    def __call__(self, progress: float) -> float:
        return 1.0


def warm(warmup: NonNegativeFloat, step: int, reached: float) -> float:
    """Rises to 1 over the first `warmup` of the budget, or over so many steps from 1 on.

    Both count the step that is made: the first one is one of them.

    Args:
        step: optimizer steps done before this one
        reached: share of the budget done with this one
    """
    if warmup == 0:
        return 1.0
    return min(1.0, (step + 1) / warmup if warmup >= 1 else reached / warmup)
