"""A GPU that is not there: steps on tensors that have a device and no numbers.

PyTorch lets one device be defined in Python, and fake tensors on it know shapes, types and devices
alone. Work on them shows what a GPU would refuse (tensors of two devices, types that a kernel does
not mix) and every place where the host would wait: a number read off a tensor, a shape that
depends on numbers, a copy between the devices. Which answers come out it cannot tell.

The device is registered for the whole process, so this is for one of its own.
"""

import copy
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.config.instantiate import instantiate
from llm.hardware.blocks import recompute_blocks
from llm.layers.noise import keyed
from llm.moe.balance import after_step
from llm.optimizer import adamw, muon
from llm.optimizer.norms import Norms, Steps

ROWS = 2
KEY = "AutocastPrivateUse1"
#: What autocast does on CUDA to the operations that we use.
LOW = "linear matmul mm bmm addmm baddbmm scaled_dot_product_attention".split()
HIGH = "layer_norm softmax.int softplus erfinv exp log rsqrt logsumexp sum cumsum".split()


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None:
        pass


_kept: list[torch.library.Library] = []  # whose registrations end with them


def register() -> None:
    """Make the device `gpu`, with the autocast of CUDA, once for the process."""
    _setup_privateuseone_for_python_backend("gpu", _Backend())
    # What our code asks before it takes the way of GPUs.
    FakeTensor.is_cuda = property(lambda tensor: tensor.device.type == "gpu")
    adamw.has_fused_kernel = muon.has_fused_kernel = lambda model: True
    others = torch.library.Library("_", "IMPL", KEY)
    others.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL")
    for name in LOW:
        library.impl(name, _autocast(name, lambda: torch.get_autocast_dtype("gpu")), KEY)
    for name in HIGH:
        library.impl(name, _autocast(name, lambda: torch.float32), KEY)
    _kept.extend([others, library])


def _autocast(name: str, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))

    def cast(value: Any) -> Any:
        known = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype()) if known and value.dtype is not torch.float64 else value

    def run(*arguments: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*_pytree.tree_map(cast, arguments), **_pytree.tree_map(cast, named))

    return run


class Waits(RuntimeError):
    """The host would wait for the device."""


class _Alone(TorchDispatchMode):
    """Refuses copies between the devices, for which the host waits; the way there may be asked for
    without waiting."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            there = answer.device.type == "gpu" and (kwargs or {}).get("non_blocking")
            if source.device.type != answer.device.type and not there:
                raise Waits(f"copies {source.device} to {answer.device}")
        return answer


def steps(
    overrides: list[str],
    document_mask: bool = False,
    training: bool = True,
    precision: torch.dtype | None = torch.bfloat16,
    recompute: bool = False,
) -> None:
    """Two optimizer steps, or two evaluations, of what `overrides` describe."""
    config = copy.deepcopy(_composed(*overrides))
    model = build_model(config, 96, device="meta")
    with FakeTensorMode(), _Alone():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    twin = torch.nn.Parameter(_on_gpu(parameter))
                    vars(twin).update(vars(parameter))
                    module._parameters[name] = twin
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _on_gpu(buffer)
        if recompute:
            recompute_blocks(model)
        optimizer = instantiate(config["optimizer"], "optimizer").optimizer(model)
        norms = Norms(model)
        ids_BT = torch.empty(ROWS, model.max_seq_len, dtype=torch.int64, device="gpu")
        keys_B2 = torch.empty(ROWS, 2, dtype=torch.int32, device="gpu")
        documents = {"document_ids_BT": ids_BT} if document_mask else {}
        for _ in range(2):
            with ExitStack() as stack:
                stack.enter_context(keyed(keys_B2))
                stack.enter_context(nullcontext() if training else torch.no_grad())
                with torch.autocast("gpu", precision) if precision else nullcontext():
                    output = model.train(training)(ids_BT, ids_BT, **documents)
                if not training:
                    continue
                (output.loss_sum / 7 + sum(output.aux.values())).backward()
            norms.gradients()
            norms.clip(2.0, 1.0)
            moved = Steps(norms)
            optimizer.step()
            norms.squares(moved.before)
            load_LE = output.router.get("load_E")
            if load_LE is not None:  # as the loop knows it
                load_LE = torch.empty(load_LE.shape, dtype=torch.float64)
            after_step(model, load_LE)
            optimizer.zero_grad(set_to_none=True)


@cache
def _composed(*overrides: str) -> Any:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_folder().absolute()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)


def _on_gpu(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="gpu")


def failures(cases: list[tuple[list[str], dict[str, Any]]]) -> list[str]:
    """A line for each case that a GPU would refuse, or wait in: overrides, why, file and line."""
    told = []
    for overrides, settings in cases:
        try:
            steps(overrides, **settings)
        except Exception as problem:
            frames = traceback.extract_tb(problem.__traceback__)
            ours = [f for f in frames if "/llm/" in f.filename] or frames
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}"
            why = f"{type(problem).__name__}: {str(problem)[:200]}"
            told.append(f"{' '.join(overrides)} {settings}: {why} at {place}")
    return told
