"""Which arms of a sweep are hopeless, by the metric logs of its runs: the median stopping rule.

An arm, a job in all its seeds, is pruned where its best validation loss so far is worse than the
median of what the other arms had reached after as many tokens. So in Golovin et al. 2017, "Google
Vizier: A Service for Black-Box Optimization", section 3.2.1, and, with the best loss on both sides
and a number of evaluations to wait, in Optuna's `MedianPruner`. Two things differ, as here many
runs begin at once. Arms count that are under way, not finished ones alone. And an arm that was
pruned goes on counting with the last it reached: left out, it would lower the median, and each
evaluation would take half of those that are left.

Losses are in bits a byte, which compare across tokenizers; arms are only held against arms that
read the same text.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from llm.config.outcome import run_facts
from llm.runs.arms import texts
from llm.tracking.points import Follower

#: (tokens, loss) of each evaluation of a run, in the order of tokens.
Curve = Sequence[tuple[int, float]]
#: So many other arms must have come as far: the median of fewer condemns too easily.
QUORUM = 4


@dataclass
class Arm:
    """A job in all its seeds."""

    curves: list[Curve] = field(default_factory=list)
    pruned: bool = False
    open: bool = False  # a job of it is running or waits
    texts: frozenset[str] = frozenset()  # marks of what it reads

    def best_until(self, tokens: int) -> float | None:
        """Mean over the seeds that came so far of their lowest loss until there; over all seeds,
        where the arm was pruned before. None where there are none."""
        begun = [curve for curve in self.curves if curve and curve[0][0] <= tokens]
        arrived = [curve for curve in begun if curve[-1][0] >= tokens]
        counted = arrived or (begun if self.pruned else [])
        if not counted:
            return None
        return fmean(min(loss for at, loss in curve if at <= tokens) for curve in counted)


class Verdict(NamedTuple):
    """Why an arm is hopeless."""

    tokens: int
    loss: float
    middle: float  # the median of the others
    others: int

    def __str__(self) -> str:
        return (
            f"val/bpb {self.loss:.4f} after {self.tokens:,} tokens, "
            f"{self.middle:.4f} the median of {self.others} others"
        )


def judge(arm: Arm, others: Iterable[Arm], after: int) -> Verdict | None:
    """The verdict on `arm` at the newest evaluation that enough `others` have reached; None
    where it is not hopeless, or it is too early to tell.

    Args:
        after: evaluations that a run makes before it is judged
    """
    others = list(others)
    points = {tokens for curve in arm.curves for tokens, _ in curve[after - 1 :]}
    for tokens in sorted(points, reverse=True):
        losses = [loss for other in others if (loss := other.best_until(tokens)) is not None]
        if len(losses) < QUORUM:
            continue
        own, middle = arm.best_until(tokens), median(losses)
        hopeless = own is not None and own > middle
        return Verdict(tokens, own, middle, len(losses)) if hopeless else None  # type: ignore[arg-type]
    return None


class Entry(NamedTuple):
    """A job as the rule sees it."""

    arm: str  # `llm.runs.arms.arm_of` its content
    folder: Path | None  # of its run, where it is known
    open: bool
    pruned: bool


class Pruner:
    """Reads the logs of a sweep's runs as they grow.

    Args:
        after: evaluations that a run makes before it is judged
    """

    def __init__(self, after: int):
        self.after = after
        self._logs: dict[Path, _Log] = {}

    def look(self, entries: Iterable[Entry]) -> dict[str, str]:
        """The arms that are hopeless and not yet at their end, and why."""
        arms: dict[str, Arm] = {}
        for entry in entries:
            arm = arms.setdefault(entry.arm, Arm())
            arm.pruned |= entry.pruned
            arm.open |= entry.open
            if entry.folder is not None:
                log = self._log(entry.folder)
                arm.curves.append(log.curve)
                arm.texts |= log.texts
        found = {}
        for name, arm in arms.items():
            if arm.open and arm.pruned:
                found[name] = "its other seeds are pruned"
            elif arm.open and any(arm.curves):
                others = [a for k, a in arms.items() if k != name and a.texts & arm.texts]
                verdict = judge(arm, others, self.after)
                if verdict is not None:
                    found[name] = str(verdict)
        return found

    def last_loss(self, folder: Path | None) -> float | None:
        """The last validation loss of a run, in nats a token."""
        return None if folder is None else self._log(folder).last_loss

    def _log(self, folder: Path) -> "_Log":
        log = self._logs.setdefault(folder, _Log(folder))
        log.read_on()
        return log


class _Log:
    """What a run's folder says: its curve, and the text that it reads."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.curve: list[tuple[int, float]] = []
        self.last_loss: float | None = None
        self.texts: frozenset[str] = frozenset()
        self._log = Follower(folder / "metrics.jsonl", holding=b'"val/bpb"')

    def read_on(self) -> None:
        rows: list[dict[str, Any]] = []
        seen = -1
        while seen != self._log.position:
            seen = self._log.position
            rows += self._log.rows()
            if self._log.begun_anew:  # cut back to a checkpoint
                self.curve = []
        for row in rows:
            loss = math.inf if row["val/bpb"] is None else row["val/bpb"]
            while self.curve and self.curve[-1][0] >= row["tokens"]:
                self.curve.pop()
            self.curve.append((row["tokens"], loss))
            self.last_loss = row["val/loss"]
        if self.curve and not self.texts:
            self.texts = texts(run_facts(self.folder))
