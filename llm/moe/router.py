"""Which experts a token goes to, and with what weight.

N tokens, D model width, E experts, K experts a token
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.types import PositiveFloat, ProperFraction
from llm.layers.noise import Noise
from llm.layers.roles import declare


class Routing(NamedTuple):
    """A router's answer for N tokens."""

    experts_NK: Tensor  # chosen experts, int64, likeliest first
    weights_NK: Tensor  # what their outputs are multiplied with, float32, differentiable
    probs_NE: Tensor  # softmax over all experts, float32, differentiable
    logits_NE: Tensor  # float32, differentiable


class TopKRouter(nn.Module):
    """p = softmax(x W_r) over all experts in float32; the K largest are chosen.

    Their weights are p itself (Switch, Fedus et al. 2021; OLMoE), or p divided by the sum over the
    chosen (`renormalize`: GShard, Lepikhin et al. 2020; Mixtral), which equals a softmax over the
    K largest logits. With K = 1 renormalising makes the weight constantly 1, and the
    language-model loss sends the router no gradient at all: that is refused.

    Args:
        d_model, n_experts, top_k: the layer's
        renormalize: divide the weights of a token by their sum
        jitter: in training the router's input is multiplied by U(1 − jitter, 1 + jitter) (Switch)
        init_scale: initial weights have σ = √(init_scale / d_model), cut off at 2σ (Switch: 0.1)
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int,
        *,
        renormalize: bool,
        jitter: ProperFraction,
        init_scale: PositiveFloat,
    ):
        super().__init__()
        if renormalize and top_k == 1:
            raise Refused(
                "with top_k=1 the renormalised weight is always 1 and the router would never "
                "learn; set it to false",
                "renormalize",
            )
        self.top_k, self.renormalize, self.jitter = top_k, renormalize, jitter
        self.noise = Noise()
        std = (init_scale / d_model) ** 0.5
        weight_ED = torch.empty(n_experts, d_model)
        nn.init.trunc_normal_(weight_ED, std=std, a=-2 * std, b=2 * std)
        self.weight_ED = declare(nn.Parameter(weight_ED), "router")

    def forward(self, x_ND: Tensor) -> Routing:
        with torch.autocast(x_ND.device.type, enabled=False):
            x_ND = x_ND.float()
            if self.training and self.jitter:
                x_ND = x_ND * (1 + self.jitter * (2 * self.noise(x_ND) - 1))
            logits_NE = F.linear(x_ND, self.weight_ED.float())
            probs_NE = logits_NE.softmax(-1)
            weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
            if self.renormalize:
                weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        return Routing(experts_NK, weights_NK, probs_NE, logits_NE)
