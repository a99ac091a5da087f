"""AdamW, with weight decay for matrices only."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import nn

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import Between, NonNegativeFloat, PositiveFloat
from llm.layers.roles import role_of
from llm.optimizer.schedule import warm

#: Norms, biases and embeddings (the head among them) are left alone.
DECAYED = ("matrix", "expert", "router")


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017), in one fused kernel.

    Args:
        lr: peak learning rate
        betas: decay of the running mean and of the running square
        eps: added to the root of the latter
        weight_decay: of linear maps, experts and routers; nothing else decays
        warmup: share of the budget over which lr rises, or a number of steps from 1 on
        schedule: an `optimizer/schedule` node
    """

    def __init__(
        self,
        *,
        lr: PositiveFloat,
        betas: list[Annotated[float, Between(0, 1, high_open=True)]],
        eps: PositiveFloat,
        weight_decay: NonNegativeFloat,
        warmup: NonNegativeFloat,
        schedule: Node,
    ):
        if len(betas) != 2:
            raise Refused(f"are two numbers, not {len(betas)}", "betas")
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.warmup = weight_decay, warmup
        make_schedule: Any = schedule
        self.schedule: Callable[[float], float] = make_schedule

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of all parameters of `model`, in two groups."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in model.parameters():
            (decayed if role_of(parameter) in DECAYED else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = next(model.parameters()).device.type in ("cpu", "cuda", "mps")
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=fused
        )

    def lr_at(self, step: int, progress: float) -> float:
        """Learning rate of the step that follows `step` done ones, `progress` of the budget."""
        return self.lr * warm(self.warmup, step, progress) * self.schedule(min(progress, 1.0))
