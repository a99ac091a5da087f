"""Routing by token ids alone, which nothing has to learn (Roller et al. 2021, Hash Layers).

N tokens, E experts, K experts a token
"""

import torch
from torch import Tensor, nn

from llm.config.types import NonNegativeInt
from llm.moe.router import Routing


class HashRouter(nn.Module):
    """Each id has K experts of its own, drawn once at random, and each of them weighs 1/K.

    Balance is that of the ids: frequent ones fill their experts. There are no logits, so nothing
    that balances a router has anything to do: `moe.balance=none`.

    Args:
        d_model, n_experts, top_k: the layer's
        seed: which of the random assignments
    """

    def __init__(self, d_model: int, n_experts: int, top_k: int, *, seed: NonNegativeInt = 0):
        super().__init__()
        self.n_experts, self.top_k, self.seed = n_experts, top_k, seed

    def forward(self, x_ND: Tensor, tokens_N: Tensor, bias_E: Tensor | None = None) -> Routing:
        expert_E = torch.arange(self.n_experts, device=tokens_N.device)
        drawn_NE = _mixed(_mixed(tokens_N + self.seed * 0x9E3779B9)[:, None] + expert_E)
        experts_NK = drawn_NE.topk(self.top_k, dim=-1).indices
        zeros_NE = torch.zeros(drawn_NE.shape, device=x_ND.device)
        probs_NE = zeros_NE.scatter(-1, experts_NK, 1 / self.top_k)
        return Routing(experts_NK, probs_NE.gather(-1, experts_NK), probs_NE, zeros_NE)


def _mixed(x: Tensor) -> Tensor:
    """32 well-mixed bits of each whole number (the finalizer of MurmurHash3), as int64."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
