"""The Mixture-of-Experts layer: a feed-forward part whose tokens choose their weights.

B batch, T time, D model width, N = B·T tokens, E experts, K experts a token
"""

from typing import Any

import torch
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import NonNegativeFloat, PositiveInt
from llm.layers.feed_forward import FeedForwardOutput, FeedForwardShape
from llm.moe.balance import switch_loss, z_loss
from llm.moe.dispatch import gather, plan, scatter
from llm.moe.experts import Experts


class MoE(nn.Module):
    """Σ over the chosen experts of weight · expert(x), dropping no token.

    Args:
        shape: what the transformer wants of its feed-forward part; each expert is that wide
        router: a router node, handed d_model, n_experts and top_k
        n_experts, top_k: how many experts there are, and how many a token uses
        balance_loss: weight of the Switch load-balancing loss, 0 for none
        z_loss: weight of the router z-loss, 0 for none
    Shapes: (B, T, D) → (B, T, D)
    """

    def __init__(
        self,
        shape: FeedForwardShape,
        *,
        n_experts: PositiveInt,
        top_k: PositiveInt,
        router: Node,
        balance_loss: NonNegativeFloat,
        z_loss: NonNegativeFloat,
    ):
        super().__init__()
        if top_k > n_experts:
            raise Refused(f"is {top_k}, more than n_experts={n_experts}", "top_k")
        self.n_experts = n_experts
        self.weights = {"balance_loss": balance_loss, "z_loss": z_loss}
        make_router: Any = router
        self.router = make_router(shape.d_model, n_experts, top_k)
        self.experts = Experts(shape, n_experts, top_k / n_experts)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_BTD: Tensor) -> FeedForwardOutput:
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND)
        places = plan(routing.experts_NK, self.n_experts)
        y_MD = self.experts(scatter(x_ND, places), places)
        y_ND = gather(y_MD, routing.weights_NK, places)
        load_E = places.counts_E / routing.experts_NK.numel()
        losses = {
            "balance_loss": switch_loss(load_E, routing.probs_NE),
            "z_loss": z_loss(routing.logits_NE),
        }
        with torch.no_grad():
            entropy = -(routing.probs_NE * routing.probs_NE.clamp_min(1e-20).log()).sum(-1).mean()
            statistics = {
                "load_E": load_E,
                "entropy": entropy,
                "confidence": routing.probs_NE.amax(-1).mean(),
                **{name: loss.detach() for name, loss in losses.items()},
            }
        if not self.training:  # for whoever examines the model
            statistics["experts_NK"] = routing.experts_NK
        aux = {name: self.weights[name] * losses[name] for name in losses if self.weights[name]}
        y_BTD = self.dropout(y_ND).view_as(x_BTD).to(x_BTD.dtype)
        return FeedForwardOutput(y_BTD, aux, statistics)
