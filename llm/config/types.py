"""The vocabulary of constructor signatures: ranges that a config value must lie in.

A constructor's signature is the schema of its YAML node. `def __init__(self, *, dropout: Fraction)`
says both that `dropout` is a float and that it lies in [0, 1]; `llm.config.validate` reads it.
"""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Between:
    """Values from `low` to `high`, ends included unless open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below  # NaN fails both

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'more than' if self.low_open else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'less than' if self.high_open else 'at most'} {self.high:.12g}")
        elif self.high_open:
            parts.append("finite")
        return " and ".join(parts)


class _Unrecorded:
    def __repr__(self) -> str:
        return "UNRECORDED"


#: Marks a parameter that cannot change a result (a path, a worker count, logging):
#: `Annotated[str, UNRECORDED]` keeps it out of the run's identity.
UNRECORDED = _Unrecorded()

PositiveInt = Annotated[int, Between(1)]
NonNegativeInt = Annotated[int, Between(0)]
PositiveFloat = Annotated[float, Between(0, low_open=True, high=math.inf, high_open=True)]
NonNegativeFloat = Annotated[float, Between(0, high=math.inf, high_open=True)]
Fraction = Annotated[float, Between(0, 1)]
ProperFraction = Annotated[float, Between(0, 1, high_open=True)]
#: What every random generator of the house takes.
Seed = Annotated[int, Between(0, 2**32 - 1)]
