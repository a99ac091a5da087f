"""How long a run is, what it ends with, and why it ended otherwise."""

import math
from typing import Any

from llm.config.root import Budget
from llm.training.state import TrainState


class Course:
    """How far a run has to go, and how far it is, in units of its budget.

    Args:
        state: where the run stands
        step_seconds: of a step, about, until it is known
    Attributes:
        steps: in all, None where the clock decides
        caveats: a line for each thing to know before it begins
    """

    def __init__(
        self,
        budget: Budget,
        state: TrainState,
        rows_per_step: int,
        seq_len: int,
        rows_per_epoch: float,
        flops_per_token: int,
        step_seconds: float,
    ):
        self.budget, self.state, self.step_seconds = budget, state, step_seconds
        self.per_step = budget.of_a_step(rows_per_step, seq_len, rows_per_epoch, flops_per_token)
        self.steps = budget.steps(self.per_step)
        self.caveats = list(budget.caveats(rows_per_step, seq_len, rows_per_epoch, self.per_step))

    @property
    def spent(self) -> float:
        return self.state.seconds / 60 if self.steps is None else self.state.step * self.per_step

    @property
    def share(self) -> float:
        """What is spent of all, at the end perhaps a little more than 1."""
        return self.spent / self.budget.amount

    @property
    def reached(self) -> float:
        """What will be spent of all when the step that comes is done."""
        if self.steps is not None:
            return (self.state.step + 1) * self.per_step / self.budget.amount
        a_step = self.state.seconds / self.state.step if self.state.step else self.step_seconds
        return (self.state.seconds + a_step) / 60 / self.budget.amount

    @property
    def seconds(self) -> float:
        """About how long it is from beginning to end."""
        return 60 * self.budget.amount if self.steps is None else self.steps * self.step_seconds

    @property
    def over(self) -> bool:
        if self.steps is not None and self.state.step >= self.steps:
            return True
        return self.spent >= self.budget.amount


def results(rows: list[dict[str, Any]], state: TrainState) -> dict[str, Any]:
    """What run.json says of a finished run, from its metric log."""
    evaluations = [row for row in rows if "val/loss" in row]
    last, best = evaluations[-1], min(evaluations, key=lambda row: row["val/loss"])
    found = {
        "val_loss": last["val/loss"],
        "best_val_loss": best["val/loss"],
        "best_step": best["step"],
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.step_seconds, 1),
    }
    if "val/bpb" in last:
        found["val_bpb"] = last["val/bpb"]
    if "val/floor" in last:
        found |= {"floor": last["val/floor"], "excess": last["val/excess"]}
        found["excess_by_skill"] = {
            name.removeprefix("val/excess/"): value
            for name, value in last.items()
            if name.startswith("val/excess/")
        }
        found |= {k.removeprefix("val/"): v for k, v in rows[-1].items() if "accepted" in k}
    return found


def diagnosis(step: int, loss: float, norm: float, lr: float, precision: str) -> str:
    """Why training stopped, and what to try."""
    cause = (
        f"fp16 overflows where bf16 does not; try hardware.precision=bf16, or a lower lr ({lr:.1e})"
        if precision == "fp16"
        else f"the likely cause is the learning rate, {lr:.1e} here; try a third, or more warm-up"
    )
    if math.isfinite(loss) and math.isfinite(norm):
        told = f"the loss leapt to {loss:.4g} (gradient norm {norm:.3g}) at step {step}"
    elif math.isfinite(loss):
        told = f"the gradient norm became {norm} at step {step}"
    else:
        told = f"the loss became {loss} at step {step}"
    return f"{told}, and leaving steps out did not help; {cause}"


def summary(facts: dict[str, Any]) -> str:
    against = f" (floor {facts['floor']:.4f})" if facts.get("floor") is not None else ""
    return f"validation loss {facts['val_loss']:.4f}{against} after {facts['tokens']:,} tokens"
