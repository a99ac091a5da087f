"""One model in several processes: DDP holds it whole in each, FSDP a share of every parameter.

Both give each gradient as a mean over the processes; the loop multiplies its loss by their number,
so that gradients are sums over all tokens, each weighted alike.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import Tensor, nn

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


class Parallel:
    """A model as the loop calls it.

    Attributes:
        model: the module itself, for everything but `forward`; its parameters are shards under FSDP
    """

    def __init__(self, model: nn.Module, scheme: Scheme, world: World):
        self.model, self.scheme, self.world = model, scheme, world
        self._call: Any = model
        if scheme == "ddp":
            self._call = _ddp(model, world)
        elif scheme == "fsdp":
            _shard(model)

    def __call__(self, *arguments: Tensor, **named: Any) -> Any:
        return self._call(*arguments, **named)

    @property
    def sharded(self) -> bool:
        return self.scheme == "fsdp"

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of what each process found in its share of the parameters."""
        return self.world.sum(tensor) if self.sharded else tensor

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-step: only the step's last one communicates."""
        if self.scheme == "ddp" and not last:
            return self._call.no_sync()
        if self.scheme == "fsdp":
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()


def _ddp(model: nn.Module, world: World) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model,
        device_ids=[world.local_rank] if on_gpu else None,
        forward_sync_buffers=False,  # every process computes the same ones
        gradient_as_bucket_view=True,
    )


def _shard(model: nn.Module) -> None:
    """FSDP2: each block gathers its parameters for its turn, the rest for the whole pass."""
    from torch.distributed.fsdp import fully_shard

    declared = {name: dict(vars(p)) for name, p in model.named_parameters()}
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block)
    fully_shard(model)
    for name, parameter in model.named_parameters():  # which are others now
        vars(parameter).update(declared[name])
