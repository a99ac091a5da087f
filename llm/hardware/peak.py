"""What a device can do, measured: the denominator of model FLOPs utilisation."""

import json
import os
import time
from pathlib import Path

import torch

from llm.hardware.cache import cache_folder
from llm.hardware.machine import DTYPES, Machine

#: Seconds that a calibration takes at most, once for a device, a precision and a version.
_SECONDS = 2.0


def measured_peak(machine: Machine) -> float:
    """FLOPs a second of the best matrix product found, in the run's precision; cached.

    A table of data sheets would flatter: a device under its power limit, or shared, does less.
    """
    name = f"{_device_name(machine.device)}, {machine.precision}, torch {torch.__version__}"
    if machine.device == "cpu":
        name += f", {torch.get_num_threads()} threads"
    file = cache_folder() / "peaks.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    if name not in known:
        known[name] = _measure(machine)
        working = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            working.write_text(json.dumps(known, indent=1))
            os.replace(working, file)
        except OSError:
            pass  # measured again next time
    return known[name]


def _measure(machine: Machine) -> float:
    best, begun = 0.0, time.perf_counter()
    for n in (4096, 8192) if machine.device == "cuda" else (512, 1024, 2048):
        a, b = (
            torch.randn(n, n, device=machine.device).to(DTYPES[machine.precision]) for _ in "ab"
        )
        _time(machine.device, a, b)  # the first call sets up
        limit = time.perf_counter() + _SECONDS / 3
        while time.perf_counter() < limit:
            best = max(best, 2 * n**3 / _time(machine.device, a, b))
        if time.perf_counter() > begun + _SECONDS:
            break
    return best


def _time(device: str, a: torch.Tensor, b: torch.Tensor, count: int = 4) -> float:
    """Seconds of one product of several in a row."""
    _wait(device)
    begun = time.perf_counter()
    for _ in range(count if device != "cpu" else 1):
        a @ b
    _wait(device)
    return (time.perf_counter() - begun) / (count if device != "cpu" else 1)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    if device == "mps":
        return "Apple GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    import platform

    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
