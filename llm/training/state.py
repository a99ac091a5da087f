"""Where a run stands: a few numbers, all of them in each checkpoint."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainState:
    """What a resume needs beside tensors.

    step, tokens: optimizer steps done, and targets that they learnt from
    documents: read to their end
    seconds: since the run began, pauses left out; step_seconds: of them in training steps
    metrics_bytes: how long metrics.jsonl was
    best: the objective's metric at its best yet, turned so that lower is better
    passed_over: rows of data that were skipped by going back; step s begins at row
        s · rows_per_step + passed_over
    went_back: [step it came from, step it went to] of each time that it went back, until it has
        passed the former by a good checkpoint
    overflowed: steps that fp16's scale spoilt
    """

    step: int = 0
    tokens: int = 0
    documents: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    metrics_bytes: int = 0
    best: float = math.inf
    passed_over: int = 0
    went_back: list[list[int]] = field(default_factory=list)
    overflowed: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint, whose own fact the step is."""
        state = {**asdict(self), "best": None if math.isinf(self.best) else self.best}
        del state["step"]
        return state

    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Restore; fields that an older checkpoint lacks keep their defaults."""
        known = {f.name: state[f.name] for f in fields(self) if f.name in state}
        known["best"] = math.inf if known.get("best") is None else known["best"]
        vars(self).update(vars(TrainState(**{**known, "step": step})))
