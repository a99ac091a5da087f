"""Where the time of a step goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds by phase. On a GPU, phases of the device are timed by events that are read when they
    are over, so that nothing waits; what is not over yet counts for a later step.

    Args:
        device: cpu, cuda or mps
    """

    def __init__(self, device: str):
        self._by_events = device == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._running: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str, on_device: bool = False) -> Iterator[None]:
        """Time what happens within; `on_device` where the host only asks for it."""
        if on_device and self._by_events:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._running.append((name, begin, end))
            return
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - begun

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last time."""
        running = []
        for name, begin, end in self._running:
            if end.query():
                self._seconds[name] += begin.elapsed_time(end) / 1000
            else:
                running.append((name, begin, end))
        self._running = running
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def memory_peak(device: str) -> int:
    """Bytes that this process used at most: of the GPU's memory, or of the machine's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
