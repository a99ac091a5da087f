"""Normalisation over the model width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.roles import declare


class LayerNorm(nn.Module):
    """(x − mean) / √(var + eps) · g + b over the last dimension (Ba et al. 2016)."""

    def __init__(self, d_model: int, eps: float, bias: bool):
        super().__init__()
        self.eps = eps
        self.gain = declare(nn.Parameter(torch.ones(d_model)), "gain")
        self.bias = declare(nn.Parameter(torch.zeros(d_model)), "bias") if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · g over the last dimension, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float, bias: bool = False):
        super().__init__()
        self.eps = eps
        self.gain = declare(nn.Parameter(torch.ones(d_model)), "gain")

    def forward(self, x: Tensor) -> Tensor:
        # Written out: F.rms_norm is 3 to 4 times slower than F.layer_norm on CPU.
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale).to(x.dtype) * self.gain


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}
