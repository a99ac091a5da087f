"""What a model costs: parameters in all and per token, operations per token."""

from dataclasses import dataclass

from torch import nn

from llm.layers.roles import PRODUCTS, role_of


@dataclass(frozen=True)
class Account:
    """Exact counts of one model.

    params_total: all parameters
    params_active: those that one token uses (top_k of n_experts)
    flops_per_token: training operations, forward and backward: 6 for each active parameter that a
        token is multiplied with (router and head included, embedding look-up not), and
        6 · L · d_model · T for causal attention, where a query sees half of T positions on average
    """

    params_total: int
    params_active: int
    flops_per_token: int


def account(model: nn.Module, d_model: int, n_layers: int, seq_len: int) -> Account:
    """Count `model`, which may be on the meta device.

    Args:
        seq_len: tokens of a training sequence, for the attention's share
    """
    total = active = products = 0.0
    for parameter in model.parameters():
        role, size = role_of(parameter), parameter.numel()
        used = size * parameter.active  # type: ignore[attr-defined]
        total += size
        active += used
        products += used if role in PRODUCTS else 0
    attention = 12 * n_layers * d_model * seq_len / 2
    return Account(round(total), round(active), round(6 * products + attention))
