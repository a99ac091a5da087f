"""From what tokens want to what they get: capacity, and choice by the experts.

Everything is counted within a sequence and in the order of its tokens. So the batch may be split in
any way, no other row changes what a token gets, and no later token does: counting all first choices
before the second ones, or serving the surest tokens first, would let the future push a token out.

B batch, T time, N = B·T tokens, E experts, K experts a token, J candidates a token
"""

import math

import torch
from torch import Tensor

#: Rounds of sending tokens on. Each places everybody, given where the last one left the tokens
#: before; what has found no room after the last passes by the residual. Enough rounds would place
#: all as if they came one after another; any number of them is causal and waits for no host.
_ROUNDS = 4


def capacity(factor: float, tokens: int, top_k: int, n_experts: int) -> int:
    """⌊factor · T · K / E⌋ assignments an expert takes of one sequence, and at least one."""
    return max(1, math.floor(factor * tokens * top_k / n_experts + 1e-9))


def capacities(factor: float, real_BT: Tensor, top_k: int, n_experts: int) -> Tensor:
    """The same for each sequence by its tokens that are no padding: (B,)."""
    tokens_B = real_BT.sum(1, dtype=torch.float64)
    return (factor * tokens_B * top_k / n_experts + 1e-9).floor().clamp_min(1).to(torch.int64)


def within_capacity(
    ranked_BTJ: Tensor, top_k: int, n_experts: int, factor: float, real_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Who is served where each expert takes `capacity` assignments of a sequence.

    Args:
        ranked_BTJ: each token's candidates, best first. J = K: what finds its expert full passes
            by the residual only (Switch, GShard). J > K: it goes to the token's next candidate
            that has room (Switch's "no token left behind", in token order)
        real_BT: False for padding, which is never served and takes no room
    Returns: experts (B, T, K) and whether each assignment is kept (B, T, K)
    """
    chosen_BTK = ranked_BTJ[..., :top_k]
    limit: int | Tensor = capacity(factor, ranked_BTJ.shape[1], top_k, n_experts)
    if real_BT is not None:
        limit = capacities(factor, real_BT, top_k, n_experts)[:, None, None]
    if ranked_BTJ.shape[-1] > top_k:
        for _ in range(_ROUNDS):
            full_BTJ = _taken_before(chosen_BTK, n_experts, real_BT).gather(-1, ranked_BTJ) >= limit
            # The candidates with room, in their order, before those without. Not a sort of bool,
            # which CUDA does not know.
            order_BTJ = full_BTJ.to(torch.uint8).argsort(dim=-1, stable=True)
            chosen_BTK = ranked_BTJ.gather(-1, order_BTJ[..., :top_k])
    kept_BTK = _taken_before(chosen_BTK, n_experts, real_BT).gather(-1, chosen_BTK) < limit
    return chosen_BTK, kept_BTK if real_BT is None else kept_BTK & real_BT[..., None]


def _taken_before(chosen_BTK: Tensor, n_experts: int, real_BT: Tensor | None) -> Tensor:
    """How many earlier tokens of the sequence chose each expert: (B, T, E)."""
    b, t, _ = chosen_BTK.shape
    zeros_BTE = torch.zeros(b, t, n_experts, dtype=torch.int32, device=chosen_BTK.device)
    chose_BTE = zeros_BTE.scatter(-1, chosen_BTK, 1)  # a token's experts differ
    if real_BT is not None:
        chose_BTE = chose_BTE * real_BT[..., None]
    return chose_BTE.cumsum(1, dtype=torch.int32) - chose_BTE


def by_experts(
    ranked_BTE: Tensor, top_k: int, n_experts: int, real_BT: Tensor | None = None
) -> tuple[Tensor, int]:
    """Expert choice (Zhou et al. 2022): each expert takes the T·K/E best tokens of a sequence.

    Balanced by construction and **not causal**: a later token may take an earlier one's place.
    Returns: whether each expert takes each token (B, T, E), and how many it takes at most
    """
    limit = capacity(1.0, ranked_BTE.shape[1], top_k, n_experts)
    none_BTE = torch.zeros_like(ranked_BTE, dtype=torch.bool)
    if real_BT is None:
        return none_BTE.scatter(1, ranked_BTE.topk(limit, dim=1).indices, True), limit
    ranked_BTE = ranked_BTE.masked_fill(~real_BT[..., None], -torch.inf)
    best_BCE = ranked_BTE.topk(limit, dim=1).indices
    limit_B11 = capacities(1.0, real_BT, top_k, n_experts)[:, None, None]
    within_BCE = torch.arange(limit, device=best_BCE.device)[:, None] < limit_B11
    taken_BTE = none_BTE.scatter(1, best_BCE, within_BCE.expand_as(best_BCE))
    return taken_BTE & real_BT[..., None], limit
