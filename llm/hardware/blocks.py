"""What is done to a model's blocks: all have the same code, so what is found for one serves all.

The head is beside them: what is between its products is one more piece to translate.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llm.config.errors import Refused
from llm.hardware.cache import cache_folder


def recompute_blocks(model: nn.Module) -> None:
    """Keep a block's input only, and compute the rest again in the backward pass.

    A third more operations, and activations of one block instead of all (Chen et al. 2016).
    """
    for block in _blocks(model):
        block.forward = partial(_again, block, block.forward)


def _again(block: nn.Module, forward: object, *arguments: object) -> object:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *arguments, use_reentrant=False)
    return forward(*arguments)  # type: ignore[operator]


@contextmanager
def one_kept(model: nn.Module) -> Iterator[None]:
    """While blocks are recomputed, let the last one keep all, as each does when its turn comes.

    What is kept then is what a step needs at most.
    """
    block = _blocks(model)[-1]
    again = vars(block).pop("forward", None)
    try:
        yield
    finally:
        if again is not None:
            block.forward = again


def compile_blocks(model: nn.Module) -> None:
    """Translate each block by torch.compile; the translations are kept between runs.

    One after the other and not the model at once: a tenth of the time to compile, and it goes
    with DDP and FSDP, which work between the blocks.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    if next(model.parameters()).device.type == "cpu" and not any(
        shutil.which(name) for name in ("g++", "clang++", "cl")
    ):
        raise Refused("hardware.compile: needs a C++ compiler such as g++; take false")
    for block in _blocks(model):
        block.compile()
    model.loss_terms = torch.compile(model.loss_terms)  # type: ignore[arg-type, assignment]


def _blocks(model: nn.Module) -> nn.ModuleList:
    return model.blocks  # type: ignore[return-value]
