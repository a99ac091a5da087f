"""What the settings of every optimizer are, and its learning rate over the budget."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import NonNegativeFloat, PositiveFloat, ProperFraction
from llm.layers.roles import Role, role_of
from llm.optimizer.schedule import warm

#: Roles whose weights decay. Norms, biases and embeddings (the head among them) are left alone.
#: The same take a learning rate by width in μP; of a head, the logits are divided instead.
DECAYED = ("matrix", "expert", "router")
ROLES = get_args(Role)
NO_FACTORS: dict[str, float] = {}


def has_fused_kernel(model: nn.Module) -> bool:
    """Whether PyTorch steps AdamW in one kernel where `model` is; elsewhere it takes several."""
    return next(model.parameters()).device.type in ("cpu", "cuda", "mps")


class Recipe:
    """The settings that every optimizer has, and its learning rate over the budget.

    Args:
        lr: peak learning rate; `auto` takes 6e-4 · 768 / d_model, which is GPT-3's choice for its
            smallest model (Brown et al. 2020, table 2.1) carried over widths as μP has it for
            hidden matrices (Yang et al. 2022): 3.6e-3 at a width of 128, 1.8e-3 at 256; times
            `batch_factor` of the tokens a step. With
            `model.parametrization=mup` it is that of `base_d_model`, and `lr` of a width m times
            as large counts for embeddings, head, gains and biases; hidden matrices get lr/m
        betas: decay of the running mean and of the running square
        eps: added to the root of the latter
        weight_decay: of linear maps, experts and routers; nothing else decays
        warmup: share of the budget over which lr rises, or a number of steps from 1 on
        schedule: an `optimizer/schedule` node
        lr_factors: by role of the parameters, what their learning rate is multiplied with (on top
            of μP's): `{router: 0.5}`. As everywhere, decay of a step is in proportion to the rate
    """

    def __init__(
        self,
        *,
        lr: PositiveFloat | Literal["auto"],
        betas: list[ProperFraction],
        eps: PositiveFloat,
        weight_decay: NonNegativeFloat,
        warmup: NonNegativeFloat,
        schedule: Node,
        lr_factors: dict[str, PositiveFloat] = NO_FACTORS,
    ):
        for name in lr_factors:
            if name not in ROLES:
                raise Refused(f"{name!r} is no role; there are {', '.join(ROLES)}", "lr_factors")
        if len(betas) != 2:
            raise Refused(f"are two numbers, not {len(betas)}", "betas")
        self.lr = math.nan if lr == "auto" else lr  # nan until the model is known
        self.betas, self.eps = (betas[0], betas[1]), eps
        self.weight_decay, self.warmup = weight_decay, warmup
        self.schedule: Callable[[float], float] = schedule  # type: ignore[assignment]
        self.lr_factors = lr_factors

    @classmethod
    def state_bytes(cls, role: Role) -> int:
        """Bytes of state that each parameter of `role` has, for estimates of memory: two moments
        in float32."""
        return 8

    @classmethod
    def step_bytes(cls, role: Role) -> int:
        """Bytes of each that a step takes in passing, beside states and gradients."""
        return 0

    def caveats(self, model: nn.Module) -> list[str]:
        """What of the settings has no effect on `model`, a line each."""
        there = sorted({role_of(parameter) for parameter in model.parameters()})
        return [
            f"optimizer.lr_factors.{name} has no effect: the model's parameters are of the roles "
            + ", ".join(there)
            for name in self.lr_factors
            if name not in there
        ]

    def settle(self, model: Any, tokens_per_step: int | None = None) -> None:
        """Decide what depends on the model and the batch; called again, it changes nothing.

        Args:
            tokens_per_step: over all processes and micro-steps; None where nothing is to depend
                on it
        """
        if math.isnan(self.lr):
            self.lr = 6e-4 * 768 / (model.d_model / model.width_ratio)
            self.lr *= self.batch_factor(tokens_per_step) if tokens_per_step else 1.0

    def batch_factor(self, tokens_per_step: int) -> float:
        """What `lr=auto` is multiplied with for the size of the batch.

        AdamW's best rate does not depend on it between 512 and 8,192 tokens (experiments/lr).
        """
        return 1.0

    def groups(
        self, parameters: list[nn.Parameter], decays: bool, width_scale: float = 1.0
    ) -> list[dict[str, Any]]:
        """Parameter groups of an optimizer, one for each factor; none is empty.

        Args:
            width_scale: μP's factor of the learning rate. Decay a step is not to depend on the
                width, so it is divided by it
        """
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            factor = self.lr_factors.get(role_of(parameter), 1.0)
            by_factor.setdefault(factor, []).append(parameter)
        return [
            {
                "params": own,
                "lr": width_scale * factor * self.lr,
                "lr_scale": width_scale * factor,
                "weight_decay": self.weight_decay / width_scale if decays else 0.0,
            }
            for factor, own in by_factor.items()
        ]

    def set_lr(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Set the learning rate of all groups, each at its own scale."""
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)  # older checkpoints bring none

    def lr_at(self, step: int, progress: float, reached: float) -> float:
        """Learning rate of the step that follows `step` done ones, from `progress` of the budget to
        `reached`.

        The schedule goes by `progress`: the first step takes the peak rate, and one that falls to 0
        leaves the last step something.
        """
        return self.lr * warm(self.warmup, step, reached) * self.schedule(min(progress, 1.0))
