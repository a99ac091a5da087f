"""Predicting the next token of a corpus."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llm import evaluate
from llm.data.batches import Batch, Order
from llm.hardware.world import World
from llm.model.transformer import Transformer
from llm.objective.base import Metric
from llm.reading import Reading


class Pretrain:
    """Rows of the training text in their order; judged by the loss on held-out text.

    Args:
        order: of the rows
        exam: what is evaluated
        rows_per_step: over all processes
    """

    metric = Metric("val/loss", "lower")
    reads_ahead = True

    def __init__(self, order: Order, exam: evaluate.Examination, rows_per_step: int):
        self.order, self.exam, self.rows_per_step = order, exam, rows_per_step

    def batch(self, first: int, model: Transformer, reading: Reading, world: World) -> Batch:
        return self.order.rows(first, self.rows_per_step)

    def epochs(self, n_rows: int) -> dict[str, float]:
        return self.order.epochs(n_rows)

    def evaluate(
        self,
        model: Transformer,
        reading: Reading,
        world: World,
        watch: Callable[[slice, dict[str, Tensor]], None] | None = None,
    ) -> dict[str, float]:
        return evaluate.examine(model, self.exam, reading, world, watch)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
