"""The interface between the training loop and what is learnt; an objective knows no trainer."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from llm.data.batches import Batch
from llm.hardware.world import World
from llm.model.transformer import Transformer
from llm.reading import Reading


class Metric(NamedTuple):
    """The one figure that says which of two evaluations is the better one."""

    name: str  # as in metrics.jsonl
    better: Literal["lower", "higher"]

    def cost(self, metrics: Mapping[str, Any]) -> float:
        """Its value in `metrics`, turned so that lower is better."""
        value = float(metrics[self.name])
        return value if self.better == "lower" else -value


class Objective(Protocol):
    """What a batch is, what is evaluated, and by which metric the best weights are chosen.

    Attributes:
        reads_ahead: whether the next batch may be read while this one is computed: it does not
            depend on the weights
    """

    metric: Metric
    reads_ahead: bool

    def batch(self, first: int, model: Transformer, reading: Reading, world: World) -> Batch:
        """All rows of the step that begins at row `first`, the same in every process."""

    def epochs(self, n_rows: int) -> dict[str, float]:
        """How often each part of the data is read in the first `n_rows` rows; "" is all of it."""

    def evaluate(
        self,
        model: Transformer,
        reading: Reading,
        world: World,
        watch: Callable[[slice, dict[str, Tensor]], None] | None = None,
    ) -> dict[str, float]:
        """Metrics of held-out data; every process calls it and gets the same."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint; empty where the step says all."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
