"""Linear maps that know their role and their initial scale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.roles import Role, declare


class Linear(nn.Module):
    """y = x Wᵀ + b, with W ~ N(0, std²) and b = 0.

    Args:
        d_in, d_out: widths
        std: standard deviation of the initial weights
        bias: whether there is a b
        role: what the weight is for (`llm.layers.roles`)
    Shapes: (…, d_in) → (…, d_out)
    """

    def __init__(self, d_in: int, d_out: int, std: float, bias: bool, role: Role = "matrix"):
        super().__init__()
        self.weight = declare(nn.Parameter(torch.empty(d_out, d_in).normal_(std=std)), role)
        self.bias = declare(nn.Parameter(torch.zeros(d_out)), "bias") if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
