"""What this machine allows: how many jobs at a time, with how many threads, on which GPU."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from llm.hardware.limits import cores, free_memory

#: Share of the memory that is free at the start which jobs may fill.
_SHARE = 0.9


def memory_free() -> float:
    """Bytes that new processes may take; infinite where nothing tells."""
    return _SHARE * free_memory()


def gpu_ids() -> list[str]:
    """CUDA devices visible to this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    n = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return names[:n] if names else [str(i) for i in range(n)]


class Gpus:
    """GPUs, each leased to one job at a time, over all launchers of this user on this machine."""

    def __init__(self, ids: list[str]):
        user = os.getuid() if hasattr(os, "getuid") else "user"
        folder = Path(tempfile.gettempdir()) / f"my-simple-llm-gpus-{user}"
        if ids:
            folder.mkdir(exist_ok=True)
        self._locks = {name: FileLock(folder / f"{name}.lock") for name in ids}

    def __len__(self) -> int:
        return len(self._locks)

    def lease(self) -> str | None:
        """The id of one that nobody uses, None where all are taken."""
        for name, lock in self._locks.items():
            if lock.is_locked:
                continue
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return name
        return None

    def give_back(self, name: str) -> None:
        self._locks[name].release()


def threads_each(parallel: int) -> int:
    """Threads of each of so many processes: OMP_NUM_THREADS where that is set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores() // max(parallel, 1))


def cpu_slots() -> int:
    """Jobs at a time on the CPU: one a core, or fewer where each is to have several threads.

    Small models gain less from a second thread than from a second job beside them.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    each = int(asked) if asked.isdigit() and int(asked) else 1
    return max(1, cores() // each)
