"""Muon: momentum whose matrices are made orthogonal before they are taken as a step.

S stacked matrices, R rows, C columns
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from llm.config.schema import Node
from llm.config.types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, ProperFraction
from llm.layers.roles import Role, role_of
from llm.optimizer.recipe import DECAYED, NO_FACTORS, Recipe, has_fused_kernel
from llm.optimizer.sharded import gather, own, share_of

#: The quintic of Jordan et al. 2024, which takes singular values in (0, 1] to about 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
#: Roles that Muon steps; AdamW steps the others.
STEPPED = ("matrix", "expert")


def orthogonalise(update_SRC: Tensor, steps: int) -> Tensor:
    """U Vᵀ, roughly, of each matrix U Σ Vᵀ, by Newton–Schulz iteration (Jordan et al. 2024).

    Singular values come out between about 0.7 and 1.2. On GPUs in bfloat16, elsewhere in float32.

    Args:
        update_SRC: with R ≤ C
    """
    a, b, c = _QUINTIC
    x_SRC = update_SRC.bfloat16() if update_SRC.is_cuda else update_SRC
    x_SRC = x_SRC / (x_SRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram_SRR = x_SRC @ x_SRC.mT
        poly_SRR = torch.baddbmm(gram_SRR, gram_SRR, gram_SRR, beta=b, alpha=c)
        x_SRC = torch.baddbmm(x_SRC, poly_SRR, x_SRC, beta=a)
    return x_SRC.to(update_SRC.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Steps groups marked `muon` by Muon and the others by AdamW, at one learning rate.

    Args:
        fused: whether the device has a kernel for AdamW, which counts its steps on the device:
            `load_state_dict` reads this in the groups to bring the counts there
    """

    def __init__(self, groups: list[dict[str, Any]], recipe: "Muon", fused: bool):
        super().__init__(groups, {"lr": recipe.lr, "fused": fused})
        self.recipe = recipe

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            step = self._muon if group["muon"] else self._adamw
            if parameters:
                step(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr = group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_([own(p) for p in parameters], 1 - lr * group["weight_decay"])
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        gathered: list[tuple[Tensor, Tensor]] = []  # a shared-out matrix, and its step
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient, momentum, weight = own(parameter.grad), own(state["momentum"]), own(parameter)
            momentum.lerp_(gradient, 1 - self.recipe.momentum)
            update = gradient.lerp(momentum, self.recipe.momentum)  # Nesterov
            if weight is not parameter and weight.ndim == 2:
                # Shared out by rows: every process takes the step of the whole matrix, and keeps
                # its own part. Experts are shared out whole.
                update = gather(update, parameter)
                weight = torch.zeros_like(update)
                gathered.append((parameter, weight))
            if not weight.numel():
                continue
            weight = weight.view(-1, *weight.shape[-2:])  # each expert is a matrix of its own
            update = update.view_as(weight)
            if update.shape[1] > update.shape[2]:
                weight, update = weight.mT, update.mT
            stacks.setdefault((update.shape[1], update.shape[2]), []).append((weight, update))
        for (_, columns), pairs in stacks.items():
            stack_SRC = torch.cat([update for _, update in pairs])
            step_SRC = orthogonalise(stack_SRC, self.recipe.steps)
            step_SRC *= -lr * self.recipe.update_rms * math.sqrt(columns)
            sizes = [weight.shape[0] for weight, _ in pairs]
            for (weight, _), step in zip(pairs, step_SRC.split(sizes), strict=True):
                weight += step
        for parameter, step in gathered:
            own(parameter).add_(share_of(step, parameter))

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        fused = group["fused"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                where = parameter.device if fused else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=where)
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            [own(p) for p in parameters],
            [own(p.grad) for p in parameters if p.grad is not None],
            [own(state["mean"]) for state in states],
            [own(state["square"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            foreach=not fused,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=self.recipe.betas[0],
            beta2=self.recipe.betas[1],
            eps=self.recipe.eps,
            weight_decay=group["weight_decay"],
        )


class Muon(Recipe):
    """Muon for matrices, each expert its own, and AdamW for the rest (Jordan et al. 2024).

    A step of a matrix is scaled to the root mean square that AdamW's usually has (Liu et al. 2025),
    so that learning rate and weight decay mean the same for both.

    Args:
        lr, betas, eps, weight_decay, warmup, schedule, lr_factors: as for `Recipe`
        momentum: decay of the running mean of a matrix's gradient
        steps: of the Newton–Schulz iteration
        update_rms: root mean square of a matrix's step, in units of lr
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
        momentum: Fraction,
        steps: PositiveInt,
        update_rms: PositiveFloat,
        lr_factors: dict[str, PositiveFloat] = NO_FACTORS,
    ):
        super().__init__(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup=warmup,
            schedule=schedule,
            lr_factors=lr_factors,
        )
        self.momentum, self.steps, self.update_rms = momentum, steps, update_rms

    @classmethod
    def state_bytes(cls, role: Role) -> int:
        """One moment of matrices, two of the rest, which AdamW steps."""
        return 4 if role in STEPPED else super().state_bytes(role)

    @classmethod
    def step_bytes(cls, role: Role) -> int:
        """Of matrices the update, a stack of all of one shape, and two more in the iteration."""
        return 16 if role in STEPPED else 0

    def batch_factor(self, tokens_per_step: int) -> float:
        """√(tokens / 2,048) between 2,048 and 8,192 tokens a step, and no more beyond.

        Best rates of `model=nano` on 400,000 tokens were 3.6e-3, 1.3e-2 and at least 2.9e-2 at 512,
        2,048 and 8,192 tokens a step (experiments/lr); with AdamW they did not move (3.4e-3, 4.6e-3
        and 3.7e-3). The exponent is that of Malladi et al. 2022 for Adam, below the measured one:
        larger batches took fewer steps there. What lies beyond was not measured.
        """
        return math.sqrt(min(max(tokens_per_step / 2048, 1.0), 4.0))

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """The optimizer of all parameters of `model`."""
        self.settle(model)
        matrices: list[nn.Parameter] = []
        routers: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in model.parameters():
            role = role_of(parameter)
            if role in STEPPED:
                matrices.append(parameter)
            else:
                (routers if role in DECAYED else others).append(parameter)
        # Of a step with orthogonal rows, rms · √d_in reaches an output, not rms · d_in as of one of
        # Adam's, whose rows point along the inputs: μP divides by √m instead of m.
        groups = [
            *(g | {"muon": True} for g in self.groups(matrices, True, model.width_ratio**-0.5)),
            *(g | {"muon": False} for g in self.groups(routers, True, 1 / model.width_ratio)),
            *(g | {"muon": False} for g in self.groups(others, False)),
        ]
        return MuonAdamW(groups, self, has_fused_kernel(model))
