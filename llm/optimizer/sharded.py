"""Parameters of which each process holds a share (DTensors: FSDP's, and experts spread over
processes), as an optimizer needs them.

An update that looks at one number at a time works on the shares; one that looks at a whole matrix
needs it gathered. Where nothing is shared out these functions pass their tensor through.
"""

from typing import Any

from torch import Tensor


def own(tensor: Tensor) -> Tensor:
    """This process's share, by reference: what is written into it is written into `tensor`."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def weight_of(tensor: Any, processes: int) -> float:
    """1 / the number of `processes` that hold what this one holds of `tensor`.

    Weighted so, what each finds in its share adds up, over all, to what is in the whole.
    """
    sharers = tensor.device_mesh.size() if hasattr(tensor, "to_local") else 1
    return sharers / processes


def gather(share: Tensor, like: Any) -> Tensor:
    """The whole of which every process brings its `share`, shared out as `like` is."""
    if not hasattr(like, "to_local"):
        return share
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(
        share, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return whole.full_tensor()


def share_of(whole: Tensor, like: Any) -> Tensor:
    """This process's share of `whole`, shared out as `like` is; nothing is sent."""
    if not hasattr(like, "to_local"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    placed = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return placed.to_local()
