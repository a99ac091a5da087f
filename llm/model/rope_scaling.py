"""Rotary positions beyond the length that a model was trained at.

θ_j = base^{−2j/C} are the plain frequencies of the C/2 pairs of channels, s the factor by which the
context grows, L the length before. Each class is one way to make a longer text look like a shorter.
"""

import math

import torch
from torch import Tensor

from llm.config.errors import Refused
from llm.config.types import PositiveFloat, PositiveInt
from llm.model.position import Geometry, Rope


class RopeLinear(Rope):
    """θ_j / s: positions are interpolated (Chen et al. 2023, Position Interpolation).

    Args:
        base: of the plain frequencies
        factor: s
    """

    def __init__(self, geometry: Geometry, *, base: PositiveFloat, factor: PositiveFloat):
        super().__init__(geometry, base=base)
        self.frequencies /= factor


class RopeDynamic(Rope):
    """A base that grows with the text, base · (s·n/L − (s−1))^{C/(C−2)} at n > L places.

    "Dynamic NTK" (bloc97, emozilla 2023; in YaRN's appendix B.3): nothing changes up to L, and no
    training is needed beyond. n is the largest position of a call plus one, row by row. So with a
    key-value cache, keys keep the turn of the length at which they were read, and logits beyond L
    differ from those of one call; all other positions agree.

    Args:
        base: of the plain frequencies
        factor: s
        original_max_seq_len: L, null for `max_seq_len`
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: PositiveFloat,
        factor: PositiveFloat,
        original_max_seq_len: PositiveInt | None = None,
    ):
        super().__init__(geometry, base=base)
        if geometry.head_dim == 2:
            raise Refused("dynamic scaling needs heads of 4 channels or more")
        self.factor, self.head_dim = factor, geometry.head_dim
        self.length = original_max_seq_len or geometry.max_seq_len

    def frequencies_for(self, position_T: Tensor) -> Tensor:
        # Of each row by itself, where rows stand at places of their own.
        last = position_T.max() if position_T.dim() == 1 else position_T.amax(-1)[:, None, None]
        n = (last + 1).clamp_min(self.length)
        growth = self.factor * n / self.length - (self.factor - 1)
        pairs = torch.arange(0, self.head_dim, 2, device=position_T.device)
        # (base · growth^{C/(C−2)})^{−2j/C}
        return self.frequencies * growth.float() ** (-pairs / (self.head_dim - 2))


class RopeYarn(Rope):
    """θ_j for fast pairs, θ_j / s for slow ones, a ramp between, and larger queries and keys.

    YaRN (Peng et al. 2023). Pair j turns r = L·θ_j/2π times within L. The ramp runs over j from
    ⌊d(beta_fast)⌋ to ⌈d(beta_slow)⌉, d(r) = C · ln(L / 2πr) / (2 ln base). cos and sin are
    multiplied by 0.1 · ln s + 1, so scores by its square.

    Args:
        base: of the plain frequencies
        factor: s
        original_max_seq_len: L, null for `max_seq_len` / s
        beta_fast: pairs that turn more often keep θ_j
        beta_slow: pairs that turn less often get θ_j / s
        attention_factor: of cos and sin; null for the above
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: PositiveFloat,
        factor: PositiveFloat,
        original_max_seq_len: PositiveInt | None = None,
        beta_fast: PositiveFloat = 32.0,
        beta_slow: PositiveFloat = 1.0,
        attention_factor: PositiveFloat | None = None,
    ):
        super().__init__(geometry, base=base)
        length = original_max_seq_len or geometry.max_seq_len / factor
        channels = geometry.head_dim

        def turning(turns: float) -> float:
            """The pair, not rounded, that turns so often within the length."""
            return channels * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(turning(beta_fast)), 0)
        high = min(math.ceil(turning(beta_slow)), channels - 1)
        pairs = torch.arange(channels // 2, dtype=torch.float32)
        ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
        self.frequencies *= (1 - ramp) + ramp / factor
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        self.magnitude = attention_factor or usual


class RopeLlama3(Rope):
    """θ_j for wavelengths below L/high, θ_j / s above L/low, a mean of both between.

    As Llama 3.1. The mean's weight of θ_j is (L/λ_j − low) / (high − low), λ_j = 2π/θ_j.

    Args:
        base: of the plain frequencies
        factor: s
        original_max_seq_len: L, null for `max_seq_len` / s
        low_freq_factor, high_freq_factor: low and high
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        base: PositiveFloat,
        factor: PositiveFloat,
        original_max_seq_len: PositiveInt | None = None,
        low_freq_factor: PositiveFloat = 1.0,
        high_freq_factor: PositiveFloat = 4.0,
    ):
        super().__init__(geometry, base=base)
        if high_freq_factor <= low_freq_factor:
            raise Refused(
                f"is {high_freq_factor:g}, not more than low_freq_factor={low_freq_factor:g}",
                "high_freq_factor",
            )
        length = original_max_seq_len or geometry.max_seq_len / factor
        turns = length * self.frequencies / (2 * math.pi)
        kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
        self.frequencies *= kept + (1 - kept) / factor
