"""Experts spread over processes: rows travel to the experts that they chose, and back.

The all-to-all of GShard (Lepikhin et al. 2020, section 3): of the N processes of a group, rank r
holds experts r·E/N … (r+1)·E/N − 1 of each layer. Each process routes its own tokens, so routers,
balance and capacity know nothing of it.

M rows sorted by expert, A rows that arrive here, E experts, H = E/N experts held here, D width
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from llm.config.errors import Refused
from llm.moe.experts import Experts

#: What a process does with the rows of its experts: (A, D) and ends (H,) int32 → (A, D).
Work = Callable[[Tensor, Tensor], Tensor]


class Route(NamedTuple):
    """Which rows go where, as the host knows it: the same for inputs, outputs and gradients."""

    group: Any
    rows: int  # M, of which those behind the last expert's stay
    sent: list[int]  # rows to each process
    arrived: list[int]  # rows from each process
    by_expert_A: Tensor  # place, among rows as they arrive, of each row sorted by local expert
    by_sender_A: Tensor  # the inverse permutation


#: What sends rows along a route.
Journey = Callable[[Tensor, Route], Tensor]


class Exchange:
    """Sends rows to the processes of `group` that hold their experts, and answers back.

    Every process of the group must call it, with any number of rows, forwards and backwards. What
    is sent depends on the loads, so the host waits for the counts once a layer; torch.compile
    leaves it, and the experts with it, as they are.
    """

    def __init__(self, group: Any):
        self.group = group

    @torch.compiler.disable
    def __call__(self, x_MD: Tensor, ends_E: Tensor, work: Work) -> Tensor:
        """(M, D) sorted by expert → (M, D), as `llm.moe.experts.Experts` has it."""
        device = x_MD.device.type
        if torch.is_autocast_enabled(device):  # what the experts compute in is what travels
            x_MD = x_MD.to(torch.get_autocast_dtype(device))
        route, ends_H = self._route(ends_E, len(x_MD))
        y_AD = work(_Travel.apply(x_MD, route, _there, _back), ends_H)
        return _Travel.apply(y_AD, route, _back, _there)

    @torch.no_grad()
    def _route(self, ends_E: Tensor, rows: int) -> tuple[Route, Tensor]:
        size = self.group.size()
        counts_NH = ends_E.diff(prepend=ends_E.new_zeros(1)).view(size, -1)
        from_NH = torch.empty_like(counts_NH)  # what each process has for each expert here
        distributed.all_to_all_single(from_NH, counts_NH, group=self.group)
        sent, arrived = torch.stack([counts_NH.sum(1), from_NH.sum(1)]).tolist()
        expert_NH = torch.arange(counts_NH.shape[1], device=ends_E.device).expand_as(from_NH)
        expert_A = torch.repeat_interleave(
            expert_NH.flatten(), from_NH.flatten(), output_size=sum(arrived)
        )
        by_expert_A = expert_A.argsort(stable=True)
        by_sender_A = torch.empty_like(by_expert_A)
        by_sender_A[by_expert_A] = torch.arange(len(expert_A), device=expert_A.device)
        ends_H = from_NH.sum(0).cumsum(0).to(torch.int32)
        return Route(self.group, rows, sent, arrived, by_expert_A, by_sender_A), ends_H


def _there(x_MD: Tensor, route: Route) -> Tensor:
    """(M, D) sorted by expert → (A, D) sorted by the experts here."""
    arrived_AD = x_MD.new_empty(sum(route.arrived), x_MD.shape[1])
    leaving_MD = x_MD[: sum(route.sent)].contiguous()
    distributed.all_to_all_single(
        arrived_AD, leaving_MD, route.arrived, route.sent, group=route.group
    )
    return arrived_AD.index_select(0, route.by_expert_A)


def _back(y_AD: Tensor, route: Route) -> Tensor:
    """(A, D) sorted by the experts here → (M, D); rows that nobody worked on are undefined."""
    y_MD = y_AD.new_empty(route.rows, y_AD.shape[1])
    leaving_AD = y_AD.index_select(0, route.by_sender_A)
    answered_MD = y_MD[: sum(route.sent)]
    distributed.all_to_all_single(
        answered_MD, leaving_AD, route.sent, route.arrived, group=route.group
    )
    return y_MD


class _Travel(torch.autograd.Function):
    """Rows that `go` one way, by `_there` or `_back`; their gradients come the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, route: Route, go: Journey, come: Journey) -> Tensor:
        ctx.route, ctx.come = route, come
        return go(rows, route)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.come(gradients, ctx.route), None, None, None


def check_split(model: nn.Module, processes: int) -> None:
    """Refuse, naming the config's key, what cannot be shared out over so many processes."""
    key = "hardware.expert_parallel"
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    if processes > 1 and not experts:
        raise Refused(f"is {processes}, and the model has no experts; take 1", key)
    for layer in experts:
        if layer.n_experts % processes:
            raise Refused(
                f"is {processes}, which does not divide the {layer.n_experts} experts of a layer",
                key,
            )


def split_experts(model: nn.Module, mesh: Any) -> None:
    """Leave each process of the 1-D device mesh its part of the experts of every layer.

    Their parameters become DTensors, shared out by expert, which everything that looks at shares
    (optimizers, norms, checkpoints) understands. All must hold the same model before.
    """
    from torch.distributed.tensor import DTensor, Shard

    for layer in [module for module in model.modules() if isinstance(module, Experts)]:
        for name, whole in list(layer.named_parameters()):
            part = whole.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
            share = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
            parameter = nn.Parameter(share, requires_grad=whole.requires_grad)
            vars(parameter).update(vars(whole))  # its role
            setattr(layer, name, parameter)
        layer.exchange = Exchange(mesh.get_group())
