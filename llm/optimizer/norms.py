"""How long gradients and steps are, by the role of their parameters."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from llm.layers.roles import role_of
from llm.optimizer.sharded import own, weight_of


class Norms:
    """Squared lengths of tensors that belong to a model's parameters, by role.

    Args:
        processes: that train it together, each knowing its share of each parameter or all of it
    Attributes:
        roles: those that the model has, in the order of the answers
    """

    def __init__(self, model: nn.Module, processes: int = 1):
        self.processes = processes
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.roles = sorted({role_of(p) for p in self.parameters})

    def squares(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """Σ x² of each role, this process's part, the sum being over all: (roles,) float32.

        Args:
            tensors: one for each of `parameters`, None where there is none
        """
        by_role: dict[str, dict[float, list[Tensor]]] = {role: {} for role in self.roles}
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            if tensor is not None and own(tensor).numel():
                weight = weight_of(parameter, self.processes)
                by_role[role_of(parameter)].setdefault(weight, []).append(own(tensor))
        device = own(self.parameters[0]).device
        none = torch.zeros((), device=device)

        def square(weight: float, list_: list[Tensor]) -> Tensor:
            return weight * torch.stack(torch._foreach_norm(list_)).float().square().sum()

        return torch.stack(
            [sum((square(*group) for group in of.items()), none) for of in by_role.values()]
        )

    def gradients(self) -> Tensor:
        """`squares` of the gradients."""
        return self.squares(parameter.grad for parameter in self.parameters)

    def clip(self, norm: float, limit: float | None) -> None:
        """Scale all gradients, whose norm together is `norm`, down to `limit`."""
        if limit is None or norm <= limit:
            return
        gradients = [own(p.grad) for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)


class Steps:
    """How far one optimizer step takes the weights, measured by a copy made before it."""

    def __init__(self, norms: Norms):
        self.norms = norms
        self.before = [own(p).detach().clone() for p in norms.parameters]

    def ratios(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """‖step‖ / ‖weights before it‖ by role, where the weights are not all zero.

        Args:
            total: sums over all processes
        """
        moved = [
            own(p).detach() - b for p, b in zip(self.norms.parameters, self.before, strict=True)
        ]
        squares = torch.stack([self.norms.squares(moved), self.norms.squares(self.before)])
        step, weights = total(squares).sqrt().tolist()
        pairs = zip(self.norms.roles, step, weights, strict=True)
        return {role: moved / size for role, moved, size in pairs if size}
