"""What keeps the experts in use, and the router's logits small.

All losses are computed for each sequence and averaged over the batch's. So they are the same
however a batch is split over micro-steps and machines, which a loss over whatever happens to be
computed together is not (this is the scope of DeepSeek-V2's and V3's loss, and of the group in
GShard and Switch). The bias is moved once for each optimizer step, by the load of all of it.

B sequences, T time, E experts, K experts a token
"""

import torch
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.moe.router import Routing

#: Each term, and the config key that says how much of it: a loss's weight, or the bias's step.
TERMS = {
    "switch": "balance_loss",
    "importance": "importance_loss",
    "load": "load_loss",
    "z": "z_loss",
    "bias": "bias_update",
}


class Balance(nn.Module):
    """Any combination of the terms that papers use, by name.

    | term | what | at balance |
    | --- | --- | --- |
    | `switch` | E · Σ f_i P_i (Fedus et al. 2021, equation 4) | 1, for every K |
    | `importance` | CV² of Σ_x G(x) (Shazeer et al. 2017, equation 6) | 0 |
    | `load` | CV² of the smooth load estimate (Shazeer, equation 11) | 0 |
    | `z` | mean of logsumexp(z)² (Zoph et al. 2022, equation 5) | – |
    | `bias` | b_i += γ · sign(mean load − load_i) after each step (Wang et al. 2024) | – |

    Args:
        names: terms joined by `+`, or `none`
        amounts: by config key; one of 0 turns its term off
    """

    def __init__(self, names: str, amounts: dict[str, float], n_experts: int):
        super().__init__()
        listed = [] if names == "none" else names.split("+")
        unknown = [name for name in listed if name not in TERMS]
        if unknown or len(set(listed)) < len(listed):
            raise Refused(
                f"is {names!r}, and must be none or some of {', '.join(TERMS)}, each once, as in "
                "switch+z",
                "balance",
            )
        keys = [TERMS[name] for name in listed]
        self.weights = {key: amounts[key] for key in keys if amounts[key]}
        self.step = self.weights.pop("bias_update", 0.0)
        #: Added to the scores for the choice of experts. No gradient; part of the state dict.
        self.bias_E: Tensor | None
        self.register_buffer("bias_E", torch.zeros(n_experts) if self.step else None)

    def forward(
        self, routing: Routing, load_BE: Tensor, real_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses, not weighted, by their config keys.

        Args:
            load_BE: how many assignments of each sequence ask for each expert
            real_BT: False for padding, which has no part in any of them
        """
        b = load_BE.shape[0]
        k = routing.experts_NK.shape[1]

        def rows(x_NE: Tensor) -> Tensor:
            return x_NE.unflatten(0, (b, -1))

        losses = {}
        if "balance_loss" in self.weights:
            shares_BE = load_BE / load_BE.sum(-1, keepdim=True).clamp_min(1)
            losses["balance_loss"] = switch_loss(shares_BE, rows(routing.probs_NE), real_BT)
        if "importance_loss" in self.weights:
            zeros_NE = torch.zeros_like(routing.probs_NE)
            gates_NE = zeros_NE.scatter(-1, routing.experts_NK, routing.weights_NK)
            losses["importance_loss"] = _of_sequences(rows(gates_NE), real_BT)
        if "load_loss" in self.weights and routing.noisy_NE is not None:  # in training only
            assert routing.noise_std_NE is not None
            chance_NE = chance_of_choice(
                routing.logits_NE, routing.noisy_NE, routing.noise_std_NE, k
            )
            losses["load_loss"] = _of_sequences(rows(chance_NE), real_BT)
        if "z_loss" in self.weights:
            losses["z_loss"] = z_loss(routing.logits_NE, real_BT)
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, each times its weight."""
        return {key: self.weights[key] * loss for key, loss in losses.items()}

    @torch.no_grad()
    def after_step(self, load_E: Tensor) -> None:
        """Move the bias towards equal load; `load_E` in any unit, of the whole optimizer step."""
        if self.bias_E is not None:
            # Equal loads differ by rounding, in a way that depends on how the step was split.
            lack_E = (1e6 * (1 - load_E / load_E.mean())).round()
            # The loop knows the load on the CPU; it does not wait for the GPU to take the signs.
            self.bias_E += self.step * torch.sign(lack_E).to(self.bias_E, non_blocking=True)


def after_step(model: nn.Module, load_LE: Tensor | None) -> None:
    """Tell each layer's balance what the optimizer step that was just taken sent its experts.

    Args:
        load_LE: of the layers with experts, in their order, summed over micro-steps and ranks
    """
    layers = [module for module in model.modules() if isinstance(module, Balance)]
    for layer, load_E in zip(layers, load_LE if load_LE is not None else [], strict=True):
        layer.after_step(load_E)


def count(experts_BTK: Tensor, n_experts: int, real_BT: Tensor | None = None) -> Tensor:
    """Assignments of each expert in each sequence, those of padding left out: (B, E) float32."""
    b, t, _ = experts_BTK.shape
    zeros_BTE = torch.zeros(b, t, n_experts, device=experts_BTK.device)
    chosen_BTE = zeros_BTE.scatter(-1, experts_BTK, 1.0)
    return (chosen_BTE if real_BT is None else chosen_BTE * real_BT[..., None]).sum(1)


def switch_loss(load_BE: Tensor, probs_BTE: Tensor, real_BT: Tensor | None = None) -> Tensor:
    """E · Σ f_i P_i, which is 1 at perfect balance for every K (Fedus et al. 2021, equation 4).

    f_i is expert i's share of the assignments, before capacity drops any, and is not
    differentiated; P_i is the mean probability of expert i. With f_i counted per token instead (as
    Mixtral's code does) the same loss would be K at balance.

    Args:
        load_BE: shares of the T·K assignments of each sequence, which sum to 1
        probs_BTE: over all experts
    """
    if real_BT is None:
        mean_BE = probs_BTE.mean(1)
    else:
        real_BT1 = real_BT[..., None]
        mean_BE = (probs_BTE * real_BT1).sum(1) / real_BT1.sum(1).clamp_min(1)
    loss_B = (load_BE.detach() * mean_BE).sum(-1)
    return load_BE.shape[-1] * _mean(loss_B, None if real_BT is None else real_BT.any(1))


def _of_sequences(x_BTE: Tensor, real_BT: Tensor | None) -> Tensor:
    """The mean over sequences of the CV² of their sums over tokens."""
    if real_BT is None:
        return cv_squared(x_BTE.sum(1)).mean()
    return _mean(cv_squared((x_BTE * real_BT[..., None]).sum(1)), real_BT.any(1))


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """The mean of x, or of those of its elements that are real."""
    return x.mean() if real is None else (x * real).sum() / real.sum().clamp_min(1)


def cv_squared(x_BE: Tensor) -> Tensor:
    """The squared coefficient of variation, variance over squared mean, of each row: (B,)."""
    return x_BE.var(-1, correction=0) / x_BE.mean(-1).square().clamp_min(1e-20)


def chance_of_choice(logits_NE: Tensor, noisy_NE: Tensor, std_NE: Tensor, top_k: int) -> Tensor:
    """P(x, i) that expert i is chosen if its own noise is drawn anew (Shazeer, equation 9).

    Φ((z_i − kth_excluding(H, K, i)) / σ_i), with kth_excluding the K-th largest of the noisy logits
    without i. Differentiable, where the load itself is not.
    """
    if top_k == logits_NE.shape[-1]:
        return torch.ones_like(logits_NE)
    best_NJ, experts_NJ = noisy_NE.topk(top_k + 1, dim=-1)
    inside_NE = torch.zeros_like(noisy_NE, dtype=torch.bool).scatter(
        -1, experts_NJ[:, :top_k], True
    )
    threshold_NE = torch.where(inside_NE, best_NJ[:, top_k:], best_NJ[:, top_k - 1 : top_k])
    return torch.special.ndtr((logits_NE - threshold_NE) / std_NE)


def z_loss(logits_NE: Tensor, real_BT: Tensor | None = None) -> Tensor:
    """mean of logsumexp(z)² (ST-MoE, Zoph et al. 2022, equation 5)."""
    real_N = None if real_BT is None else real_BT.flatten()
    return _mean(logits_NE.logsumexp(-1).square(), real_N)
