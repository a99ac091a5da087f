"""Tokens to their experts and back: sort by expert, and undo the sort.

Nothing is dropped, so a token's output does not depend on its neighbours.

N tokens, K experts a token, M = N·K assignments, E experts, D width
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Assignments in the order of their experts; within an expert, in token order."""

    order_M: Tensor  # assignment (token · K + choice) at each sorted place
    place_M: Tensor  # sorted place of each assignment: the inverse
    experts_M: Tensor  # expert at each sorted place
    ends_E: Tensor  # int32: place just behind each expert's last assignment
    counts_E: Tensor  # assignments of each expert


def plan(experts_NK: Tensor, n_experts: int) -> Plan:
    """Sort the assignments by expert."""
    assigned_M = experts_NK.flatten()
    experts_M, order_M = assigned_M.sort(stable=True)
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    # searchsorted instead of bincount, whose output size would make a GPU wait for the host
    edges = torch.arange(n_experts, device=experts_M.device)
    ends_E = torch.searchsorted(experts_M, edges, right=True)
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    return Plan(order_M, place_M, experts_M, ends_E.to(torch.int32), counts_E)


class _Scatter(torch.autograd.Function):
    """Copy each token to its K sorted places; the gradient is gathered from them and summed."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_M: Tensor, place_M: Tensor) -> Tensor:
        ctx.k = order_M.numel() // x_ND.shape[0]
        ctx.save_for_backward(place_M)
        return x_ND.index_select(0, order_M // ctx.k)

    @staticmethod
    def backward(ctx: Any, d_MD: Tensor) -> tuple[Tensor, None, None]:
        (place_M,) = ctx.saved_tensors
        d_NKD = d_MD.index_select(0, place_M).unflatten(0, (-1, ctx.k))
        return d_NKD.sum(1), None, None


class _Gather(torch.autograd.Function):
    """Bring sorted rows back into assignment order; the gradient takes the opposite way."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, order_M: Tensor, place_M: Tensor) -> Tensor:
        ctx.save_for_backward(order_M)
        return y_MD.index_select(0, place_M)

    @staticmethod
    def backward(ctx: Any, d_MD: Tensor) -> tuple[Tensor, None, None]:
        (order_M,) = ctx.saved_tensors
        return d_MD.index_select(0, order_M), None, None


def scatter(x_ND: Tensor, plan: Plan) -> Tensor:
    """(N, D) → (M, D): each token once for each of its experts, in the order of the experts."""
    return _Scatter.apply(x_ND, plan.order_M, plan.place_M)


def gather(y_MD: Tensor, weights_NK: Tensor, plan: Plan) -> Tensor:
    """(M, D) → (N, D): the weighted sum of each token's experts."""
    y_NKD = _Gather.apply(y_MD, plan.order_M, plan.place_M).unflatten(0, weights_NK.shape)
    return (y_NKD * weights_NK.unsqueeze(-1).to(y_NKD.dtype)).sum(1)
