"""The alarm that rings when a layer stops using its experts.

L layers with experts, E experts, K experts a token
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm.layers.roles import role_of

#: Steps between two looks, the steps that a collapse must last, and those of the very beginning
#: that count for nothing: 5 + 15 and the 22 that the mean takes to fall to a tenth make 42.
EVERY, LASTING, BEGINNING = 5, 15, 20
#: Steps after a line in which no other is said.
SETTLING = 30
#: Steps that the mean of the loads remembers, and choices an expert that it must hold at least.
HORIZON, CHOICES_AN_EXPERT = 10, 8
#: Collapsed: less than this share of the experts beyond the K that any routing uses is in use…
IN_USE = 1 / 3
#: …or this share of all gets next to nothing: less than a tenth of an even load.
IDLE, NEXT_TO_NOTHING = 0.5, 0.1


class CollapseAlarm:
    """Watches the loads of each layer, averaged over the last steps.

    The effective number of experts is exp(entropy of the load): E where all get the same, K where
    every token goes to the same K. A layer has collapsed where (effective − K) / (E − K) < ⅓, or
    where half of the experts get less than a tenth of an even load, for `LASTING` steps. Loads are
    averaged before, since the load of one small batch is uneven by chance alone. A collapse is
    reported within 50 steps; later where a step has fewer than 0.8 choices an expert, because
    then chance takes longer to rule out.

    Said once; again when twice as many layers have collapsed, or the worst one uses half of what it
    used once the first fall was over; and anew after all had recovered.

    Args:
        top_k: K
        tokens: of the batches that the loads are from
    """

    def __init__(self, top_k: int, tokens: int):
        self.top_k, self.tokens = top_k, tokens
        self.collapsed = 0  # layers
        self._seen = 0
        self._mean_LE: Tensor | None = None
        self._lasted_L: list[int] = []
        # When a line was said last: how many looks ago, of how many layers, the worst one's use.
        self._said: list[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """JSON facts from which a resumed run goes on alike: a copy, to be written meanwhile."""
        return {
            "collapsed": self.collapsed,
            "seen": self._seen,
            "mean": None if self._mean_LE is None else self._mean_LE.tolist(),
            "lasted": list(self._lasted_L),
            "said": list(self._said) if self._said else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.collapsed, self._seen = state["collapsed"], state["seen"]
        self._mean_LE = None if state["mean"] is None else torch.tensor(state["mean"])
        self._lasted_L = list(state["lasted"])
        self._said = list(state["said"]) if state["said"] else None

    def watch(self, step: int, load_LE: Tensor) -> str | None:
        """Take the loads of one step; a line for people where there is something new to say.

        One small operation a step; figures leave the device every fifth step only.

        Args:
            load_LE: each expert's share of the choices of its layer
        """
        n_experts = load_LE.shape[1]
        if self._mean_LE is None:
            self._mean_LE = torch.zeros_like(load_LE, dtype=torch.float32)
            self._lasted_L = [0] * len(load_LE)
        elif self._mean_LE.device != load_LE.device:
            self._mean_LE = self._mean_LE.to(load_LE.device)
        self._seen += 1
        horizon = max(HORIZON, CHOICES_AN_EXPERT * n_experts / (self.tokens * self.top_k))
        self._mean_LE.lerp_(load_LE.float(), max(1 / self._seen, 1 / horizon))
        if self._seen % EVERY or self._seen < max(BEGINNING, horizon) or n_experts <= self.top_k:
            return None
        return self._judge(step, self._mean_LE.cpu().double().numpy())

    def _judge(self, step: int, mean_LE: np.ndarray) -> str | None:
        n_experts = mean_LE.shape[1]
        share_LE = mean_LE / np.maximum(mean_LE.sum(1, keepdims=True), 1e-12)
        effective_L = effective_experts(share_LE)
        used_L = np.maximum((effective_L - self.top_k) / (n_experts - self.top_k), 0.0)
        idle_L = (share_LE < NEXT_TO_NOTHING / n_experts).sum(1)
        bad_L = (used_L < IN_USE) | (idle_L >= IDLE * n_experts)
        self._lasted_L = [
            lasted + EVERY if bad else 0
            for lasted, bad in zip(self._lasted_L, bad_L.tolist(), strict=True)
        ]
        down = [layer for layer, lasted in enumerate(self._lasted_L) if lasted > LASTING]
        self.collapsed = len(down)
        if not bad_L.any():
            self._said = None
        if not down:
            return None
        worst = min(down, key=lambda layer: effective_L[layer])
        used = float(used_L[worst])
        if self._said is not None:
            looks, layers, before = self._said
            self._said[0] += 1
            if looks * EVERY < SETTLING:  # the mean still falls to where the loads are
                self._said[2] = min(before, used)
                return None
            # Below a tenth there is nothing left to lose that is worth a line.
            if self.collapsed < 2 * layers and not (used < before / 2 and before > 0.1):
                return None
        self._said = [0, self.collapsed, used]
        more = f" (and {self.collapsed - 1} more)" if self.collapsed > 1 else ""
        return (
            f"expert collapse in MoE layer {worst}{more} at step {step}: as good as "
            f"{effective_L[worst]:.1f} of {n_experts} experts in use (top_k={self.top_k}), the "
            f"busiest takes {share_LE[worst].max():.0%} of the choices, {idle_L[worst]} idle; "
            "raise moe.balance_loss or lower optimizer.lr"
        )


def active_experts(model: nn.Module) -> int:
    """K of a model, from the share of its experts that a token uses; 1 where it has none."""
    for parameter in model.parameters():
        if role_of(parameter) == "expert" and parameter.dim() == 3:
            return max(1, round(parameter.active * len(parameter)))  # type: ignore[attr-defined]
    return 1


def effective_experts(share_LE: np.ndarray) -> np.ndarray:
    """exp(entropy) of each layer's load: (L, E), rows adding up to 1 → (L,)."""
    return np.exp(-(share_LE * np.log(np.maximum(share_LE, 1e-12))).sum(1))
