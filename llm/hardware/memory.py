"""The most memory that a run has held."""

import sys

import torch


def peak_memory(device: str) -> int | None:
    """Bytes since the process began: of the GPU, or of this process; None where nothing tells."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
