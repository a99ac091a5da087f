"""How a token learns where it stands.

B batch, T time, D model width, H heads, C channels of a head
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.types import PositiveFloat
from llm.layers.context import Context
from llm.layers.roles import declare


@dataclass(frozen=True)
class Geometry:
    """What the transformer tells its position encoding."""

    d_model: int
    n_heads: int
    head_dim: int
    max_seq_len: int
    init_std: float


class Position(nn.Module):
    """No position at all, and the contract of the others.

    `embed` acts on the embedded tokens, `rotate` on queries and keys of every layer, `bias` on the
    scores. `limit` is the number of positions that exist, None where there is no end.
    """

    limit: int | None = None

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.biased = type(self).bias is not Position.bias

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        """x with its position added: (B, T, D) → (B, T, D)."""
        return x_BTD

    def rotate(self, x_BHTC: Tensor, context: Context) -> Tensor:
        """Queries or keys turned by their position: (B, H, T, C) → (B, H, T, C)."""
        return x_BHTC

    def bias(self, query_T1: Tensor, key_TS: Tensor) -> Tensor | None:
        """What is added to the scores, in any form, learned or not; None for nothing.

        Args:
            query_T1, key_TS: places in the text of the query, with any dimensions of a batch
                before; keys that are not seen may stand anywhere
        Returns: (…, H, T, S)
        """
        return None


class Alibi(Position):
    """Scores of head i = 1 … H lose 2^{−8i/H} for each place of distance.

    ALiBi (Press et al. 2022). The formula stands for every H; the paper's code interpolates where H
    is no power of two.
    """

    slopes_H: Tensor

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        heads_H = torch.arange(1, geometry.n_heads + 1)
        self.register_buffer("slopes_H", 2.0 ** (-8 * heads_H / geometry.n_heads), persistent=False)

    def bias(self, query_T1: Tensor, key_TS: Tensor) -> Tensor:
        return -self.slopes_H[:, None, None] * (query_T1 - key_TS).unsqueeze(-3)


class Kerple(Position):
    """Scores of a head lose p · ln(1 + a · distance), with p, a > 0 learned for each head.

    The logarithmic kernel of KERPLE (Chi et al. 2022, equation 6), shared by all layers. The paper
    draws p from (0, 2) and a from (0, 1) and clamps them; here their logarithms are learned.
    """

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        p_H, a_H = (torch.empty(geometry.n_heads).uniform_(0.01, most) for most in (2.0, 1.0))
        self.log_p_H = declare(nn.Parameter(p_H.log_()), "gain")
        self.log_a_H = declare(nn.Parameter(a_H.log_()), "gain")

    def bias(self, query_T1: Tensor, key_TS: Tensor) -> Tensor:
        # Keys that are not seen may stand behind the query, or nowhere.
        distance_1TS = (query_T1 - key_TS).clamp(0, 2**24).unsqueeze(-3)
        p_H11, a_H11 = self.log_p_H.exp()[:, None, None], self.log_a_H.exp()[:, None, None]
        return -p_H11 * torch.log1p(a_H11 * distance_1TS)


class Learned(Position):
    """One learned vector a position (GPT-2)."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.limit: int = geometry.max_seq_len
        table = torch.empty(geometry.max_seq_len, geometry.d_model).normal_(std=geometry.init_std)
        self.weight = declare(nn.Parameter(table), "embedding")

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        # Padding behind a text may stand where there is no position any more.
        return x_BTD + self.weight[context.position_T.clamp_max(self.limit - 1)]


class Sinusoidal(Position):
    """sin and cos of pos / 10000^{2i/d}, interleaved (Vaswani et al. 2017, section 3.5).

    Times √2 · init_std, so that their RMS is that of the initial embeddings. (The paper multiplies
    the embeddings by √d instead, to much the same ratio.)
    """

    frequencies: Tensor

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        if geometry.d_model % 2:
            raise Refused(f"sinusoidal positions need an even d_model, not {geometry.d_model}")
        # The table enters at the scale of the embeddings. At its own (RMS 0.7) it drowns them: 3.27
        # nats a byte against 2.54 after 400 steps, where learned positions reach 2.55.
        self.scale = geometry.init_std
        exponent = torch.arange(0, geometry.d_model, 2) / geometry.d_model
        self.register_buffer("frequencies", 10_000.0**-exponent, persistent=False)

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        angles = context.position_T.float()[..., None] * self.frequencies
        table_TD = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        return x_BTD + self.scale * math.sqrt(2) * table_TD.to(x_BTD.dtype)


class Rope(Position):
    """Rotary positions: channel pairs (j, j + C/2) turn by pos · base^{−2j/C} (Su et al. 2021).

    The half-split layout of Llama and its descendants.
    """

    frequencies: Tensor
    magnitude = 1.0  # of what is turned; YaRN's is larger

    def __init__(self, geometry: Geometry, *, base: PositiveFloat = 10_000.0):
        super().__init__(geometry)
        if geometry.head_dim % 2:
            raise Refused(f"rotary positions need an even head width, not {geometry.head_dim}")
        exponent = torch.arange(0, geometry.head_dim, 2) / geometry.head_dim
        self.register_buffer("frequencies", base**-exponent, persistent=False)

    def frequencies_for(self, position_T: Tensor) -> Tensor:
        """Radians a place for each pair of channels: (C/2,), or of each row (…, 1, C/2)."""
        return self.frequencies

    def rotate(self, x_BHTC: Tensor, context: Context) -> Tensor:
        if context.cache is None:
            cos_1TC, sin_1TC = self._turns(context)
        else:  # where blocks may write to the context, once for all layers
            cos_1TC = context.once("cos", lambda: self._turns(context)[0])
            sin_1TC = context.once("sin", lambda: self._turns(context)[1])
        low, high = x_BHTC.float().chunk(2, -1)
        turned = x_BHTC.float() * cos_1TC + torch.cat([-high, low], -1) * sin_1TC
        return turned.to(x_BHTC.dtype)

    def _turns(self, context: Context) -> tuple[Tensor, Tensor]:
        """cos and sin of each place's angles, of one head for all; rows as given: (…, 1, T, C)."""
        position_T = context.position_T
        angles = position_T.float()[..., None] * self.frequencies_for(position_T)
        cos, sin = angles.cos(), angles.sin()
        if self.magnitude != 1:
            cos, sin = self.magnitude * cos, self.magnitude * sin
        return torch.cat([cos, cos], -1).unsqueeze(-3), torch.cat([sin, sin], -1).unsqueeze(-3)
