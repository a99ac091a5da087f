"""The largest micro-batch that fits, found before step 0 without running out of memory first.

On a GPU trial steps are run, and one that fails is no harm. On a CPU the system would kill the
process instead of refusing memory, so what a forward pass keeps for the backward one is counted
for one row and for two, and continued in a straight line.
"""

from collections.abc import Callable

import torch

from llm.hardware.limits import free_memory

#: Share of the memory that is there which a step may fill.
_SHARE = 0.85
#: On a CPU: gradients and temporaries beside what is kept for the backward pass.
_BESIDE = 2.0
#: Where nobody says how much memory there is.
_UNKNOWN = 4.0 * 2**30


def largest_fitting(
    rows_per_step: int,
    device: str,
    trial: Callable[[int], None],
    reserve: int,
    local_size: int = 1,
) -> int:
    """Rows of one process's micro-step: a divisor of `rows_per_step`, at least 1.

    Args:
        rows_per_step: this process's rows of an optimizer step
        trial: forward and backward of so many rows, leaving nothing behind
        reserve: bytes that a step needs beside them, for the optimizer
        local_size: processes that share this machine's memory, where they compute on its CPU
    """
    sizes = [n for n in range(rows_per_step, 0, -1) if rows_per_step % n == 0]
    if device == "cuda":
        return next((n for n in sizes if _fits_on_gpu(n, trial, reserve)), 1)
    one, two = (_kept_bytes(n, trial) for n in (1, 2))
    per_row, fixed = max(two - one, 1), max(2 * one - two, 0)
    free = free_memory()
    free = _SHARE * (free if free < float("inf") else _UNKNOWN) / local_size
    room = (free - reserve) / _BESIDE
    return next((n for n in sizes if fixed + n * per_row <= room), 1)


def _fits_on_gpu(rows: int, trial: Callable[[int], None], reserve: int) -> bool:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        trial(rows)
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return torch.cuda.max_memory_allocated() + reserve <= _SHARE * total


def _kept_bytes(rows: int, trial: Callable[[int], None]) -> int:
    """Bytes that autograd keeps for the backward pass of `rows` rows, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trial(rows)
    return sum(storages.values())
