"""What a model costs: parameters in all and per token, operations per token."""

from dataclasses import dataclass

from llm.layers.roles import PRODUCTS, role_of
from llm.model.transformer import Transformer


@dataclass(frozen=True)
class Account:
    """Exact counts of one model.

    params_total: all parameters
    params_active: those that one token uses (top_k of n_experts)
    flops_per_token: training operations, forward and backward: 6 for each active parameter that a
        token is multiplied with (router and head included, embedding look-up not), and
        12 for each channel of each key that a query meets: with causal attention half of T keys on
        average, so 6 · L · d_model · T, less with windows (`Attention.channels_met`)
    """

    params_total: int
    params_active: int
    flops_per_token: int


def account(model: Transformer, seq_len: int) -> Account:
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
    attention = 12 * model.channels_met(seq_len)
    return Account(round(total), round(active), round(6 * products + attention))
