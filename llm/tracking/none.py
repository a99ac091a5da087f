"""tracking=none: the metric log and nothing beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class NoTracking:
    """The interface of a tracker, doing nothing.

    A tracker is told of each point after it was written to `metrics.jsonl` or `perf.jsonl`, and
    never raises: a run does not depend on who watches it.
    """

    def start(
        self,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        group: str | None,
        resumed_at: int,
        flops_per_token: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Begin, or continue at step `resumed_at`. `say` prints a line for people."""

    def log(self, step: int, tokens: int, metrics: Mapping[str, Any]) -> None:
        """One point, already in the run's logs."""

    def table(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Texts that the model wrote at `step`; every sample has the same columns."""

    def finish(self, exit_code: int) -> None:
        """The run is over: 0 done, anything else as the command's exit code."""
