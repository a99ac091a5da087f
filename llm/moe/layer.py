"""The Mixture-of-Experts layer: a feed-forward part whose tokens choose their weights.

B batch, T time, D model width, N = B·T tokens, E experts, K experts a token
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from llm.layers.context import Context
from llm.layers.feed_forward import FeedForward, FeedForwardOutput, FeedForwardShape
from llm.layers.noise import Dropout
from llm.moe.balance import Balance, count
from llm.moe.choice import by_experts, within_capacity
from llm.moe.dispatch import gather, plan, scatter
from llm.moe.experts import Experts
from llm.moe.router import Routing


class MoE(nn.Module):
    """Σ over the chosen experts of weight · expert(x), and experts that are always on.

    Router, choice and dispatch, experts and balance are four parts that know of one another only
    what this forward pass hands them.

    Capacity is counted for each sequence of a batch, in the order of its tokens. Tokens that go on
    from a cache are served without a limit, as in all inference code: a limit is a share of a
    length that is not known yet.

    Args:
        shape: what the transformer wants of its feed-forward part; each expert is that wide, or
            1/granularity of it
        router: a router node, handed d_model, the number of experts and of those that a token uses
        n_experts, top_k: how many experts there are, and how many a token uses
        granularity: m cuts each expert into m of width d_ff/m, of which a token uses m·top_k
            (DeepSeekMoE, Dai et al. 2024, section 3.1)
        n_shared: experts of that width that all tokens use, with weight 1 (section 3.2)
        choice: `token`, or `expert`: each expert takes the top_k·T/n_experts best tokens of a
            sequence (Zhou et al. 2022), which is not causal
        capacity_factor: in training an expert takes at most ⌊factor·T·top_k/n_experts⌋ assignments
            of a sequence; null drops nothing, and no token's output depends on another's
        eval_capacity_factor: the same in evaluation (ST-MoE: 1.25 and 2.0)
        overflow: what finds its expert full passes by the `residual` only, or goes on to the
            token's `next` best one
        balance: terms of `llm.moe.balance` joined by +, or `none`
        balance_loss, importance_loss, load_loss, z_loss: their weights
        bias_update: step of the bias, γ
        init: `upcycle` makes each expert a copy of the feed-forward part of the dense checkpoint
            that the model starts from (`llm.moe.upcycle`)
    Shapes: (B, T, D) → (B, T, D)
    """

    def __init__(
        self,
        shape: FeedForwardShape,
        *,
        n_experts: PositiveInt,
        top_k: PositiveInt,
        router: Node,
        granularity: PositiveInt = 1,
        n_shared: NonNegativeInt = 0,
        choice: Literal["token", "expert"] = "token",
        capacity_factor: PositiveFloat | None = None,
        eval_capacity_factor: PositiveFloat | None = None,
        overflow: Literal["residual", "next"] = "residual",
        balance: str = "switch+z",
        balance_loss: NonNegativeFloat = 0.01,
        importance_loss: NonNegativeFloat = 0.1,
        load_loss: NonNegativeFloat = 0.1,
        z_loss: NonNegativeFloat = 0.001,
        bias_update: NonNegativeFloat = 0.001,
        init: Literal["random", "upcycle"] = "random",
    ):
        super().__init__()
        if top_k > n_experts:
            raise Refused(f"is {top_k}, more than n_experts={n_experts}", "top_k")
        if shape.d_ff % granularity:
            raise Refused(
                f"is {granularity}, which does not divide d_ff={shape.d_ff}", "granularity"
            )
        self.n_experts, self.top_k = n_experts * granularity, top_k * granularity
        one = replace(shape, d_ff=shape.d_ff // granularity)
        make_router: Any = router
        self.router = make_router(shape.d_model, self.n_experts, self.top_k)
        self.experts = Experts(one, self.n_experts, self.top_k / self.n_experts)
        self.shared = None
        if n_shared:
            self.shared = FeedForward(replace(one, d_ff=n_shared * one.d_ff, dropout=0.0))
        amounts = {
            "balance_loss": balance_loss,
            "importance_loss": importance_loss,
            "load_loss": load_loss,
            "z_loss": z_loss,
            "bias_update": bias_update,
        }
        self.balance = Balance(balance, amounts, self.n_experts)
        self.granularity, self.init = granularity, init
        self.choice, self.overflow = choice, overflow
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.dropout = Dropout(shape.dropout)
        self._refuse_contradictions()

    @property
    def caveat(self) -> str | None:
        """For `llm.build.caveats`."""
        if self.choice == "token":
            return None
        return (
            "moe.choice=expert is not causal: experts choose among all tokens of a sequence, later "
            "ones too, so its losses are not those of a language model, and text that it writes a "
            "token at a time is routed otherwise than in training; for analysis only"
        )

    def _refuse_contradictions(self) -> None:
        terms, router = self.balance.weights.keys(), self.router
        if "load_loss" in terms and getattr(router, "noise_weight_ED", None) is None:
            raise Refused("has load, whose estimate needs router.noise=true", "balance")
        if self.overflow == "next" and self.top_k == self.n_experts:
            raise Refused("is next, and top_k leaves no other expert", "overflow")
        asks = {"choice": self.choice == "expert", "overflow": self.overflow == "next"}
        for key, asked in asks.items():
            if asked and not hasattr(router, "weigh"):
                raise Refused("needs a router that can weigh other experts than its own", key)
        if self.choice == "expert":
            for key, wrong in {
                "capacity_factor": self.capacity_factor or self.eval_capacity_factor,
                "overflow": self.overflow == "next",
                "balance": terms - {"z_loss"} or self.balance.bias_E is not None,
                "router.renormalize": router.renormalize,
                "router.scores": router.scores == "softmax_after_topk",
            }.items():
                if wrong:
                    raise Refused("has no meaning where experts choose their tokens", key)

    def forward(self, x_BTD: Tensor, context: Context | None = None) -> FeedForwardOutput:
        b, t, _ = x_BTD.shape
        if context is None:  # the layer by itself: whole texts, whose ids nobody asks for
            context = Context.of(x_BTD.new_zeros(b, t, dtype=torch.int64))
        x_ND, decoding, real_BT = x_BTD.flatten(0, 1), context.cache is not None, context.real_BT
        routing = self.router(x_ND, context.tokens_BT.flatten(), self.balance.bias_E)
        experts_NK, weights_NK, kept_NK, rows = self._choose(routing, b, t, decoding, real_BT)
        if t == 1 and decoding and x_ND.device.type == "cpu" and not torch.is_grad_enabled():
            least = context.cache.least_rows
            y_ND = self.experts.of_few(x_ND, experts_NK, weights_NK, kept_NK, least)
        else:
            places = plan(experts_NK, self.n_experts, kept_NK, rows)
            y_MD = self.experts(scatter(x_ND, places), places.ends_E)
            y_ND = gather(y_MD, weights_NK, places)
        y_BTD = y_ND.view_as(x_BTD).to(x_BTD.dtype)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD).y_BTD.to(x_BTD.dtype)
        y_BTD = self.dropout(y_BTD)
        if decoding:
            return FeedForwardOutput(y_BTD, {}, {})
        chosen_NK = experts_NK if kept_NK is None else experts_NK.masked_fill(~kept_NK, -1)
        # What tokens ask for, before capacity drops or moves any.
        load_BE = count(routing.experts_NK.view(b, t, -1), self.n_experts, real_BT)
        losses = self.balance(routing, load_BE, real_BT)
        taken_E = load_BE.sum(0)
        if self.choice == "expert" and kept_NK is not None:
            # What experts take; dropped is then a token that none of them took.
            taken_E, kept_NK = kept_NK.sum(0), kept_NK.any(-1)
        real_N = None if real_BT is None else real_BT.flatten()
        statistics = {
            **_statistics(routing, taken_E, kept_NK, real_N),
            **{name: loss.detach() for name, loss in losses.items()},
        }
        if not self.training:  # for whoever examines the model
            statistics["experts_NK"] = chosen_NK  # −1 where an expert was full
        return FeedForwardOutput(y_BTD, self.balance.weighted(losses), statistics)

    def _choose(
        self, routing: Routing, b: int, t: int, decoding: bool, real_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, int | None]:
        """Experts and weights (N, K), which are kept (N, K), and how many rows that makes."""
        experts_NK, weights_NK = routing.experts_NK, routing.weights_NK
        if self.choice == "expert":
            # Every token offers itself to every expert: K = E, and most assignments are dropped.
            assert routing.gates_NE is not None
            gates_BTE = routing.gates_NE.detach().view(b, t, -1)
            kept_BTE, limit = by_experts(gates_BTE, self.top_k, self.n_experts, real_BT)
            kept_NE = kept_BTE.flatten(0, 1)
            experts_NE = torch.arange(self.n_experts, device=kept_NE.device).expand_as(kept_NE)
            weights_NE = self.router.weigh(routing.gates_NE, experts_NE)
            return experts_NE, weights_NE, kept_NE, b * self.n_experts * limit
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None or decoding:
            kept_NK = None if real_BT is None else real_BT.reshape(-1, 1).expand_as(experts_NK)
            return experts_NK, weights_NK, kept_NK, None
        candidates_NJ = experts_NK
        if self.overflow == "next":
            assert routing.ranked_NE is not None
            candidates_NJ = routing.ranked_NE.topk(self.top_k + 1, dim=-1).indices
        experts_BTK, kept_BTK = within_capacity(
            candidates_NJ.view(b, t, -1), self.top_k, self.n_experts, factor, real_BT
        )
        experts_NK = experts_BTK.flatten(0, 1)
        if self.overflow == "next":
            weights_NK = self.router.weigh(routing.gates_NE, experts_NK)
        return experts_NK, weights_NK, kept_BTK.flatten(0, 1), None


@torch.no_grad()
def _statistics(
    routing: Routing, taken_E: Tensor, kept_NK: Tensor | None, real_N: Tensor | None
) -> dict[str, Tensor]:
    """What this layer's router did with the tokens that are no padding: load as a share, entropy in
    nats, confidence, share dropped."""
    probs_NE = routing.probs_NE
    dropped = probs_NE.new_zeros(())
    if real_N is not None:
        probs_NE = probs_NE[real_N]
    if kept_NK is not None:
        dropped = 1 - (kept_NK if real_N is None else kept_NK[real_N]).float().mean()
    return {
        "load_E": taken_E / taken_E.sum(),
        "entropy": -(probs_NE * probs_NE.clamp_min(1e-20).log()).sum(-1).mean(),
        "confidence": probs_NE.amax(-1).mean(),
        "dropped": dropped,
    }
