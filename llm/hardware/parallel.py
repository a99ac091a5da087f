"""One model in several processes: DDP holds it whole in each, FSDP a share of every parameter.

Both give each gradient as a mean over the processes; the loop multiplies its loss by their number,
so that gradients are sums over all tokens, each weighted alike.

With expert parallelism the processes form DP groups of EP each, neighbours together. A group holds
the experts of every layer once (`llm.moe.exchange`); all else is DDP's or FSDP's over all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from llm.config.errors import Refused
from llm.hardware.world import World

Scheme = Literal["none", "ddp", "fsdp"]


def resolve(asked: str, world: World) -> Scheme:
    """`auto` is DDP under torchrun and nothing otherwise. Refused where they do not fit."""
    if world.size == 1:
        if asked in ("ddp", "fsdp") and not world.launched:
            raise Refused(
                "needs several processes; start it with "
                f"torchrun --nproc-per-node 2 -m llm.train hardware.parallel={asked} …",
                "parallel",
            )
        return "none"
    if asked == "none":
        raise Refused(
            f"is none, and torchrun started {world.size} processes; take ddp or fsdp", "parallel"
        )
    return "ddp" if asked == "auto" else asked  # type: ignore[return-value]


def expert_mesh(device: str, expert_parallel: int, world: World) -> Any:
    """The processes as a device mesh of `replicas` × `experts`; None without expert parallelism."""
    if expert_parallel == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    shape = (world.size // expert_parallel, expert_parallel)
    return init_device_mesh(device, shape, mesh_dim_names=("replicas", "experts"))


class Parallel:
    """A model as the loop calls it.

    Args:
        mesh: `expert_mesh`'s, over which experts are spread already
    Attributes:
        model: the module itself, for everything but `forward`; its parameters are shards under
            FSDP, and experts where they are spread
    """

    def __init__(self, model: nn.Module, scheme: Scheme, world: World, mesh: Any = None):
        self.model, self.scheme, self.world, self.mesh = model, scheme, world, mesh
        self.experts = {n: p for n, p in model.named_parameters() if hasattr(p, "to_local")}
        self._call: Any = model
        if scheme == "ddp":
            self._call = _ddp(model, world, list(self.experts))
        elif scheme == "fsdp":
            _shard(model, set(self.experts.values()))

    def __call__(self, *arguments: Tensor, **named: Any) -> Any:
        return self._call(*arguments, **named)

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return self.scheme == "fsdp" or self.mesh is not None

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-step: only the step's last one communicates."""
        if self.scheme == "fsdp":
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        with self._call.no_sync() if self.scheme == "ddp" and not last else nullcontext():
            yield
        if last and self.mesh is not None:
            self._reduce_experts()

    def _reduce_experts(self) -> None:
        """Gradients of experts as DDP and FSDP give all others: means over all processes.

        Each holds the sum over its group, whose rows came here; what lacks are the other groups'.
        """
        replicas: Any = self.mesh["replicas"].get_group()
        gradients = [p.grad.to_local() for p in self.experts.values() if p.grad is not None]  # type: ignore[attr-defined]
        works = [distributed.all_reduce(g, group=replicas, async_op=True) for g in gradients]
        for work, gradient in zip(works, gradients, strict=True):
            work.wait()
            gradient /= self.world.size


def _ddp(model: nn.Module, world: World, elsewhere: list[str]) -> nn.Module:
    """DDP, whose gradients are summed while the backward pass goes on.

    It lays them out for the network anew after the first pass of its life. How gloo rounds the sum
    of three or more depends on where a number lies, so a resume would not repeat the run that it
    goes on with: the first pass is one on a row of nothing, before training.

    Args:
        elsewhere: names of parameters that are not its business
    """
    from torch.nn.parallel import DistributedDataParallel

    on_gpu = next(model.parameters()).is_cuda
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, elsewhere)
    ddp = DistributedDataParallel(
        model,
        device_ids=[world.local_rank] if on_gpu else None,
        forward_sync_buffers=False,  # every process computes the same ones
        gradient_as_bucket_view=True,
    )
    ids_BT = torch.zeros(1, model.max_seq_len, dtype=torch.int64)  # type: ignore[call-overload]
    with torch.compiler.set_stance("force_eager"):  # nothing is translated for this shape
        output = ddp(ids_BT, ids_BT)
        (output.loss_sum + sum(output.aux.values())).backward()
    model.zero_grad(set_to_none=True)
    return ddp


def _shard(model: nn.Module, elsewhere: set[nn.Parameter]) -> None:
    """FSDP2: each block gathers its parameters for its turn, the rest for the whole pass.

    Args:
        elsewhere: parameters that are not its business
    """
    from torch.distributed.fsdp import fully_shard

    declared = {name: dict(vars(p)) for name, p in model.named_parameters()}
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, ignored_params=elsewhere)
    fully_shard(model, ignored_params=elsewhere)
    for name, parameter in model.named_parameters():  # which are others now
        vars(parameter).update(declared[name])
