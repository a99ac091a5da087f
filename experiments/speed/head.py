"""The output head with its cross-entropy, forward and backward, against the plain version.

    python experiments/speed/head.py [--vocab 50304] [--d-model 384] [--tokens 8192] [--rounds 5]

Time: the two take turns in one process. Peak memory: of a process each, over one that only holds
inputs and weight.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llm.hardware.allocator import keep_freed_memory
from llm.layers.cross_entropy import linear_cross_entropy, plain_cross_entropy


def chunked(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> None:
    linear_cross_entropy(hidden_ND, weight_VD, targets_N)[0].backward()


def plain(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> None:
    plain_cross_entropy(hidden_ND, weight_VD, targets_N).sum().backward()


def nothing(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> None:
    (hidden_ND.sum() + weight_VD.sum()).backward()  # the gradients alone


def inputs(tokens: int, d_model: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    hidden_ND = torch.randn(tokens, d_model, requires_grad=True)
    weight_VD = (torch.randn(vocab, d_model) * 0.02).requires_grad_()
    return hidden_ND, weight_VD, torch.randint(vocab, (tokens,))


def peak(step: Callable[..., None], sizes: tuple[int, int, int]) -> int:
    """KiB that a process needs at most."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (step, sizes))


def _peak(step: Callable[..., None], sizes: tuple[int, int, int]) -> int:
    keep_freed_memory()
    step(*inputs(*sizes))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    sizes = (given.tokens, given.d_model, given.vocab)
    base = peak(nothing, sizes)
    memory = {step.__name__: (peak(step, sizes) - base) / 1024 for step in (chunked, plain)}
    keep_freed_memory()
    tensors = inputs(*sizes)
    times: dict[str, list[float]] = {"chunked": [], "plain": []}
    for turn in range(given.rounds + 1):
        for step in (chunked, plain):
            begun = time.perf_counter()
            step(*tensors)
            if turn:  # the first warms up
                times[step.__name__].append(time.perf_counter() - begun)
            for tensor in tensors[:2]:
                tensor.grad = None
    pairs = zip(times["plain"], times["chunked"], strict=True)
    faster = statistics.median(p / c for p, c in pairs)
    smaller = memory["plain"] / memory["chunked"]
    for name in times:
        middle = statistics.median(times[name])
        print(f"{name:8} {middle:6.2f} s  {memory[name]:7.0f} MiB beyond inputs and gradients")
    print(f"chunked is {faster:.2f} times as fast, in 1/{smaller:.1f} of the memory")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {"seconds": times, "mib": memory, "faster": faster, "smaller": smaller}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
