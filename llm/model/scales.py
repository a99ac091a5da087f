"""How initial weights, scores and logits depend on a model's depth and width."""

from dataclasses import dataclass
from typing import Literal

Init = Literal["gpt2", "depth_scaled"]
Parametrization = Literal["standard", "mup"]


@dataclass(frozen=True)
class Scales:
    """Standard deviations at the start, and factors of scores and logits.

    Weights are N(0, σ²), σ = init_std, gains 1, biases 0. Projections that write into the residual
    stream get, in layer l = 1 … L,
        gpt2          σ / √(2L)   (Radford et al. 2019)
        depth_scaled  σ / √(2l)   (Zhang, Titov and Sennrich 2019: 1/√l, so that early layers speak
                                   up and late ones, into a stream that has grown, speak low)

    With `mup` (Yang et al. 2022, tables 3 and 8, for Adam), m = d_model / base_d_model and
        hidden matrices   σ / √m, and a learning rate of 1/m (`llm.optimizer.recipe`)
        embedding         σ
        logits            · 1/m, the head's own weights σ: a tied head is the embedding
        scores            8 / C instead of 1 / √C, the same at the usual C = 64
    so that the learning rate that is best at base_d_model is best at every width. Widths of the
    feed-forward part and of all heads together are taken to grow with d_model. Routers keep their
    own initial scale, which falls as 1/√d_model already.
    """

    init: Init
    parametrization: Parametrization
    init_std: float
    n_layers: int
    ratio: float  # d_model / base_d_model

    @property
    def width_ratio(self) -> float:
        """m, and 1 where width changes nothing (`standard`)."""
        return self.ratio if self.parametrization == "mup" else 1.0

    @property
    def matrix_std(self) -> float:
        """Of hidden matrices."""
        return self.init_std / self.width_ratio**0.5

    def residual_std(self, layer: int) -> float:
        """Of projections into the residual stream, in layer 0 … n_layers − 1."""
        depth = self.n_layers if self.init == "gpt2" else layer + 1
        return self.matrix_std / (2 * depth) ** 0.5

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied with."""
        return 1 / self.width_ratio

    def attention_scale(self, head_dim: int) -> float | None:
        """What scores are multiplied with, None for 1/√C."""
        return 8 / head_dim if self.parametrization == "mup" else None
