"""Losses that keep the experts in use, and the router's logits small.

N tokens, E experts, K experts a token
"""

from torch import Tensor


def switch_loss(load_E: Tensor, probs_NE: Tensor) -> Tensor:
    """E · Σ f_i P_i, which is 1 at perfect balance for every K (Fedus et al. 2021, equation 4).

    f_i is expert i's share of the assignments and is not differentiated; P_i is the mean
    probability of expert i. With f_i counted per token instead (as Mixtral's code does) the same
    loss would be K at balance.

    Args:
        load_E: share of the N·K assignments, sums to 1
        probs_NE: softmax over all experts
    """
    return load_E.numel() * (load_E.detach() * probs_NE.mean(0)).sum()


def z_loss(logits_NE: Tensor) -> Tensor:
    """mean of logsumexp(z)² (ST-MoE, Zoph et al. 2022, equation 5)."""
    return logits_NE.logsumexp(-1).square().mean()
