"""AdamW, with weight decay for matrices only."""

from typing import Any

import torch
from torch import nn

from llm.layers.roles import role_of
from llm.optimizer.recipe import DECAYED, Recipe, has_fused_kernel
from llm.optimizer.sharded import own


class _OwnShares(torch.optim.AdamW):
    """Steps each process's share of its parameters, of which some may be shared out otherwise.

    The kernel takes no list in which DTensors and others are mixed. State stays as the parameters
    are, so that checkpoints find it.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> Any:
        answer = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [own(tensor) for tensor in tensors]
        return answer


class AdamW(Recipe):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017), in one fused kernel."""

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """The optimizer of all parameters of `model`: groups of hidden matrices, and of others."""
        self.settle(model)
        hidden: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in model.parameters():
            (hidden if role_of(parameter) in DECAYED else others).append(parameter)
        groups = [*self.groups(hidden, True, 1 / model.width_ratio), *self.groups(others, False)]
        fused = has_fused_kernel(model)
        return _OwnShares(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)
