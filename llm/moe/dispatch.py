"""Tokens to their experts and back: sort by expert, and undo the sort.

The shapes depend on the number of tokens and never on the loads, and nothing waits for the host.
Between `scatter` and the experts rows lie expert by expert: there they travel where experts are
spread over processes (`llm.moe.exchange`).

N tokens, K experts a token, M rows of experts (N·K where nothing is dropped), E experts, D width
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Assignments in the order of their experts; within an expert, in token order.

    What is dropped (capacity) comes last, behind `ends_E[-1]`: rows that no expert works on and
    nobody reads.
    """

    order_M: Tensor  # assignment (token · K + choice) in each row
    place_NK: Tensor  # row of each assignment; 0 where it is dropped
    ends_E: Tensor  # int32: row just behind each expert's last one
    counts_E: Tensor  # rows of each expert
    kept_NK: Tensor | None  # which assignments are not dropped; None: all


def plan(
    experts_NK: Tensor, n_experts: int, kept_NK: Tensor | None = None, rows: int | None = None
) -> Plan:
    """Sort the assignments by expert.

    Args:
        kept_NK: which of them are not dropped, at least one; None: all
        rows: how many rows to make, no fewer than are kept; None: one for each assignment
    """
    assigned_NK = experts_NK if kept_NK is None else experts_NK.where(kept_NK, n_experts)
    experts_M, order_M = assigned_NK.flatten().sort(stable=True)
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    place_NK = place_M.view_as(experts_NK)
    if kept_NK is not None:
        place_NK = place_NK.where(kept_NK, 0)
    # searchsorted instead of bincount, whose output size would make a GPU wait for the host
    edges = torch.arange(n_experts, device=experts_M.device)
    ends_E = torch.searchsorted(experts_M, edges, right=True)
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    return Plan(order_M[:rows], place_NK, ends_E.to(torch.int32), counts_E, kept_NK)


class _Scatter(torch.autograd.Function):
    """Copy each token to its rows; the gradient is gathered from them and summed."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, order_M: Tensor, place_NK: Tensor, kept_NK: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(place_NK, kept_NK)
        return x_ND.index_select(0, order_M // place_NK.shape[1])

    @staticmethod
    def backward(ctx: Any, d_MD: Tensor) -> tuple[Tensor, None, None, None]:
        place_NK, kept_NK = ctx.saved_tensors
        # One choice at a time: (N, K, D) would be written once more and read again.
        d_ND = d_MD.index_select(0, place_NK[:, 0])
        if kept_NK is not None:
            d_ND = d_ND * kept_NK[:, :1]
        for k in range(1, place_NK.shape[1]):
            row_ND = d_MD.index_select(0, place_NK[:, k])
            d_ND += row_ND if kept_NK is None else row_ND * kept_NK[:, k : k + 1]
        return d_ND, None, None, None


class _Gather(torch.autograd.Function):
    """Σ_k w_nk y_nk over a token's rows; backwards the weights go with the rows' gradients.

    With g the gradient at token n: ∂/∂y_m = w_m g, ∂/∂w_m = ⟨g, y_m⟩, both from one copy of g in
    the order of the rows.
    """

    @staticmethod
    def forward(
        ctx: Any, y_MD: Tensor, weights_NK: Tensor, order_M: Tensor, place_NK: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_MD, weights_NK, order_M, place_NK)
        low_NK = weights_NK.to(y_MD.dtype)
        y_ND = y_MD.index_select(0, place_NK[:, 0]).mul_(low_NK[:, :1])
        for k in range(1, weights_NK.shape[1]):
            y_ND.addcmul_(y_MD.index_select(0, place_NK[:, k]), low_NK[:, k : k + 1])
        return y_ND

    @staticmethod
    def backward(ctx: Any, d_ND: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_MD, weights_NK, order_M, place_NK = ctx.saved_tensors
        d_MD = d_ND.index_select(0, order_M // weights_NK.shape[1])
        d_weights_M = (d_MD * y_MD).sum(-1, dtype=weights_NK.dtype)
        d_MD *= weights_NK.flatten().index_select(0, order_M).to(d_MD.dtype).unsqueeze(-1)
        d_weights_NK = d_weights_M.index_select(0, place_NK.flatten()).view_as(weights_NK)
        return d_MD, d_weights_NK, None, None


def scatter(x_ND: Tensor, plan: Plan) -> Tensor:
    """(N, D) → (M, D): each token once for each of its experts, in the order of the experts."""
    return _Scatter.apply(x_ND, plan.order_M, plan.place_NK, plan.kept_NK)


def gather(y_MD: Tensor, weights_NK: Tensor, plan: Plan) -> Tensor:
    """(M, D) → (N, D): the weighted sum of each token's experts; 0 where all are dropped."""
    if plan.kept_NK is not None:
        weights_NK = weights_NK * plan.kept_NK
    return _Gather.apply(y_MD, weights_NK, plan.order_M, plan.place_NK)
