"""The feed-forward part of a block, and the contract that its replacements keep.

B batch, T time, D model width, F feed-forward width
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.context import Context
from llm.layers.linear import Linear
from llm.layers.noise import Dropout

Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu", "geglu"]

#: The function inside; gated ones multiply it by a second projection of the input.
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
    "swiglu": F.silu,
    "geglu": F.gelu,
}
GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class FeedForwardShape:
    """What the transformer tells each of its feed-forward parts, whatever they are made of."""

    d_model: int
    d_ff: int
    activation: Activation
    bias: bool
    dropout: float
    init_std: float
    residual_std: float  # of the projection that writes into the residual stream


class FeedForwardOutput(NamedTuple):
    """What a feed-forward part returns. Only experts fill more than `y_BTD`, and they only where
    there is no cache in the context: nobody reads losses and statistics of text being written.
    """

    y_BTD: Tensor
    aux: dict[str, Tensor]  # auxiliary losses, weighted, means over the tokens of this call
    router: dict[str, Tensor]  # statistics of this layer, detached


class FeedForward(nn.Module):
    """W₂ act(W₁x), or W₂ (act(W₁x) · W₃x) where the activation is gated (Shazeer 2020).

    Shapes: (B, T, D) → (B, T, D)
    """

    def __init__(self, shape: FeedForwardShape):
        super().__init__()
        d_model, d_ff = shape.d_model, shape.d_ff
        self.activation = ACTIVATIONS[shape.activation]
        self.up = Linear(d_model, d_ff, shape.init_std, shape.bias)
        gated = shape.activation in GATED
        self.gate = Linear(d_model, d_ff, shape.init_std, shape.bias) if gated else None
        self.down = Linear(d_ff, d_model, shape.residual_std, shape.bias)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x_BTD: Tensor, context: Context | None = None) -> FeedForwardOutput:
        up_BTF = self.up(x_BTD)
        if self.gate is None:
            hidden_BTF = self.activation(up_BTF)
        else:
            hidden_BTF = self.activation(self.gate(x_BTD)) * up_BTF
        return FeedForwardOutput(self.dropout(self.down(hidden_BTF)), {}, {})
