"""How long a run is, what it ends with, and why it ended otherwise."""

import math
from typing import TYPE_CHECKING, Any

from llm.config.root import Budget

if TYPE_CHECKING:
    from llm.runs.directory import Run
    from llm.runs.position import Position


def extent(
    budget: Budget, rows_per_step: int, seq_len: int, rows_per_epoch: float, flops_per_token: int
) -> tuple[int | None, float]:
    """Steps in all (None where the clock decides), and what one step takes off the budget."""
    tokens = rows_per_step * seq_len
    per_step = {
        "tok": tokens,
        "step": 1,
        "epoch": rows_per_step / rows_per_epoch,
        "flops": tokens * flops_per_token,
        "min": math.nan,
    }[budget.unit]
    if budget.unit == "min":
        return None, 0.0
    return max(1, math.ceil(budget.amount / per_step - 1e-9)), per_step


def results(rows: list[dict[str, Any]], at: "Position") -> dict[str, Any]:
    """What run.json says of a finished run, from its metric log."""
    evaluations = [row for row in rows if "val/loss" in row]
    last, best = evaluations[-1], min(evaluations, key=lambda row: row["val/loss"])
    found = {
        "val_loss": last["val/loss"],
        "val_bpb": last["val/bpb"],
        "best_val_loss": best["val/loss"],
        "best_step": best["step"],
        "steps": at.step,
        "tokens": at.tokens,
        "seconds": round(at.seconds, 3),
        "tokens_per_second": round(at.tokens / at.step_seconds, 1),
    }
    if "val/floor" in last:
        found |= {"floor": last["val/floor"], "excess": last["val/excess"]}
        found["excess_by_skill"] = {
            name.removeprefix("val/excess/"): value
            for name, value in last.items()
            if name.startswith("val/excess/")
        }
        found |= {k.removeprefix("val/"): v for k, v in rows[-1].items() if "accepted" in k}
    return found


def diagnosis(run: "Run", step: int, loss: float, norm: float, lr: float, precision: str) -> str:
    """Why training stopped, and what to try, in one line."""
    from llm.runs.keeper import last_good

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
    return f"{told}, and leaving steps out did not help; {cause}; {last_good(run)}"


def summary(facts: dict[str, Any]) -> str:
    against = f" (floor {facts['floor']:.4f})" if facts.get("floor") is not None else ""
    return f"validation loss {facts['val_loss']:.4f}{against} after {facts['tokens']:,} tokens"
