"""Which experts a token wants, and with what weight.

N tokens (B·T, row by row), D model width, E experts, K experts a token
"""

from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.types import NonNegativeFloat, PositiveFloat, ProperFraction
from llm.layers.noise import Noise
from llm.layers.roles import declare


class Routing(NamedTuple):
    """A router's answer for N tokens. The last four are for balance and choice; a router that
    leaves them out works with everything that does not ask for them."""

    experts_NK: Tensor  # chosen experts, int64, best first
    weights_NK: Tensor  # what their outputs are multiplied with, float32, differentiable
    probs_NE: Tensor  # over all experts, adding up to 1, float32, differentiable
    logits_NE: Tensor  # without noise, float32, differentiable
    ranked_NE: Tensor | None = None  # what the choice is made by: noise and bias included
    gates_NE: Tensor | None = None  # what `weigh` takes the weights from, differentiable
    noisy_NE: Tensor | None = None  # logits with Shazeer's noise, differentiable
    noise_std_NE: Tensor | None = None  # its standard deviation, differentiable


class TopKRouter(nn.Module):
    """z = x W_r in float32; scores are made of z, and the K experts with the largest are chosen.

    Published routers differ in independent choices, which are keys here:

    - `scores`: `softmax` over all experts (Switch, Fedus et al. 2021; Mixtral; OLMoE),
      `softmax_after_topk` over the K chosen logits (Shazeer et al. 2017), or `sigmoid` of each
      (DeepSeek-V3). A softmax after the choice equals one before it that is renormalised.
    - `renormalize`: a token's weights divided by their sum (GShard, Lepikhin et al. 2020; Mixtral;
      Qwen3; DeepSeek-V3), or left as they are (Switch, OLMoE).
    - `scale`: what the weights are multiplied with in the end (DeepSeek-V3: 2.5).
    - `noise`: H = z + ε · softplus(x W_n) in training, ε ~ N(0, 1) (Shazeer, equation 4), with
      W_n = 0 at the start.
    - `jitter`: in training the router's input is multiplied by U(1 − jitter, 1 + jitter) (Switch).
    - `init_scale`: W_r has σ = √(init_scale / d_model) at the start, cut off at 2σ (Switch: 0.1;
      Shazeer: 0, all of it zero).

    With K = 1 a softmax after the choice, or renormalising, makes the weight constantly 1, and the
    language-model loss sends the router no gradient at all: that is refused.

    Args:
        d_model, n_experts, top_k: the layer's
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int,
        *,
        renormalize: bool,
        jitter: ProperFraction,
        init_scale: NonNegativeFloat,
        scores: Literal["softmax", "softmax_after_topk", "sigmoid"] = "softmax",
        scale: PositiveFloat = 1.0,
        noise: bool = False,
    ):
        super().__init__()
        if top_k == 1 and (renormalize or scores == "softmax_after_topk"):
            key, remedy = ("renormalize", "false") if renormalize else ("scores", "softmax")
            raise Refused(
                "with top_k=1 the renormalised weight is always 1 and the router would never "
                f"learn; set it to {remedy}",
                key,
            )
        self.top_k, self.renormalize, self.jitter = top_k, renormalize, jitter
        self.scores, self.scale = scores, scale
        std = (init_scale / d_model) ** 0.5
        weight_ED = torch.zeros(n_experts, d_model)
        if std:
            nn.init.trunc_normal_(weight_ED, std=std, a=-2 * std, b=2 * std)
        self.weight_ED = declare(nn.Parameter(weight_ED), "router")
        self.noise_weight_ED = None
        if noise:
            zeros_ED = torch.zeros(n_experts, d_model)
            self.noise_weight_ED = declare(nn.Parameter(zeros_ED), "router")
        self.draws = Noise()

    def forward(
        self, x_ND: Tensor, tokens_N: Tensor | None = None, bias_E: Tensor | None = None
    ) -> Routing:
        """Route N tokens.

        Args:
            tokens_N: their ids, of which this router makes no use
            bias_E: added to the scores for the choice and not for the weights (Wang et al. 2024)
        """
        device = x_ND.device.type
        low = torch.is_autocast_enabled(device)  # entering the context costs more than the softmax
        with torch.autocast(device, enabled=False) if low else nullcontext():
            x_ND = x_ND.float()
            if self.training and self.jitter:
                x_ND = x_ND * (1 + self.jitter * (2 * self.draws(x_ND) - 1))
            logits_NE = noisy_NE = F.linear(x_ND, self.weight_ED.float())
            std_NE = None
            if self.training and self.noise_weight_ED is not None:
                std_NE = F.softplus(F.linear(x_ND, self.noise_weight_ED.float()))
                noisy_NE = logits_NE + std_NE * self._normal(logits_NE)
            if self.scores == "sigmoid":
                gates_NE = noisy_NE.sigmoid()
                probs_NE = gates_NE / gates_NE.sum(-1, keepdim=True).clamp_min(1e-20)
            else:
                probs_NE = noisy_NE.softmax(-1)
                gates_NE = probs_NE if self.scores == "softmax" else noisy_NE
            ranked_NE = gates_NE.detach() if bias_E is None else gates_NE.detach() + bias_E
            experts_NK = ranked_NE.topk(self.top_k, dim=-1).indices
            return Routing(
                experts_NK,
                self.weigh(gates_NE, experts_NK),
                probs_NE,
                logits_NE,
                ranked_NE,
                gates_NE,
                noisy_NE if std_NE is not None else None,
                std_NE,
            )

    def weigh(self, gates_NE: Tensor, experts_NK: Tensor) -> Tensor:
        """The weights (N, K) of these experts: `scores`, `renormalize` and `scale` applied."""
        weights_NK = gates_NE.gather(-1, experts_NK)
        if self.scores == "softmax_after_topk":
            weights_NK = weights_NK.softmax(-1)
        elif self.renormalize:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True).clamp_min(1e-20)
        return weights_NK * self.scale if self.scale != 1 else weights_NK

    def _normal(self, like_NE: Tensor) -> Tensor:
        """ε ~ N(0, 1) from uniform numbers in steps of 2⁻²⁴, each taken in its middle: never ±∞."""
        return 2**0.5 * torch.erfinv(2 * self.draws(like_NE) - 1 + 2.0**-24)
