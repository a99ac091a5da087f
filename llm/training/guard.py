"""Steps that would do harm: told by what the last ones were like, and left out."""

import math
from collections import deque
from statistics import median
from typing import Any

#: Accepted steps that a new one is compared with, and how many it takes to judge.
_WINDOW, _ENOUGH = 128, 32
#: Nats by which a loss must stand out, however steady the ones before it were.
_LEAST = 1.0


class SpikeGuard:
    """Judges each step by its loss and its gradient norm before clipping, before it is taken.

    A step is left out where one of them is not finite, where the norm is more than `factor` times
    the median of the last accepted 128, or where the loss lies more than `factor` standard
    deviations (estimated from the median deviation) and at least one nat above their median.

    Args:
        factor: None judges by finiteness only
        patience: so many bad steps in a row are no accident of the data
    """

    def __init__(self, factor: float | None, patience: int):
        self.factor, self.patience = factor, patience
        self.skipped = 0  # in all
        self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._norms: deque[float] = deque(maxlen=_WINDOW)

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether to take this step; remembers the answer."""
        if self._is_sound(loss, norm):
            self.in_a_row = 0
            self._losses.append(loss)
            self._norms.append(norm)
            return True
        self.in_a_row += 1
        self.skipped += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether leaving out one step after the other has not helped."""
        return self.in_a_row >= self.patience

    def _is_sound(self, loss: float, norm: float) -> bool:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        if self.factor is None or len(self._losses) < _ENOUGH:
            return True
        middle = median(self._losses)
        sigma = 1.4826 * median(abs(value - middle) for value in self._losses)
        if loss > middle + max(self.factor * sigma, _LEAST):
            return False
        return norm <= self.factor * max(median(self._norms), 1e-12)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "losses": list(self._losses),
            "norms": list(self._norms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self._losses = deque(state["losses"], maxlen=_WINDOW)
        self._norms = deque(state["norms"], maxlen=_WINDOW)
