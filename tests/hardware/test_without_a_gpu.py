"""What a GPU would refuse, and where the host would wait for it, found without one."""

import multiprocessing

import pytest
import torch

from llm.config.choices import Choices
from llm.layers.norm import RMSNorm
from tests.hardware import fake_gpu

GROUPS = Choices().groups
SMALL = ["model.d_model=32", "model.n_heads=4", "model.d_ff=64", "model.max_seq_len=24"]
SMALL += ["model.n_layers=2"]
NANO = ["model=nano", *SMALL]
ONE = [*NANO, "model.n_layers=1"]
WINDOWS = ["model.window=[8,null]", "model.n_sinks=2", "model.n_kv_heads=2"]

norm = RMSNorm.forward
#: What a GPU would wait for or refuse, put into a layer.
SPOILT = {
    "reads a number": lambda self, x: norm(self, x) * x.sum().item(),
    "asks where": lambda self, x: norm(self, x) + len(x.nonzero()),
    "copies": lambda self, x: norm(self, x) + torch.ones(x.shape[-1]).to(x.device),
    "mixes devices": lambda self, x: norm(self, x) + torch.ones(x.shape[-1]),
}


def in_a_new_process(work):
    """What `work` answers in a process of its own, begun anew: PyTorch counts the devices at its
    first backward pass, so none may lie behind it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def some_cases() -> list[str]:
    """Of a handful of presets, and then of each way to spoil a layer."""
    cases = [
        (
            [*ONE, "moe=topk", "optimizer=muon", *WINDOWS, "model.window=8"],
            {"document_mask": True},
        ),
        ([*ONE, "moe=noisy_topk", "optimizer=adamw", "model.dropout=0.1"], {"recompute": True}),
    ]
    fake_gpu.register()
    told = fake_gpu.failures(cases)
    for spoilt in SPOILT.values():
        RMSNorm.forward = spoilt
        told += fake_gpu.failures([([*ONE, "moe=dense"], {"training": False})]) or ["nothing"]
    return told


def test_no_step_waits_and_what_waits_is_found_with_its_line():
    told = in_a_new_process(some_cases)
    found = told[-len(SPOILT) :]
    assert told == found, "\n".join(told)
    for line in found:
        assert "moe=dense" in line and "transformer.py" in line, line


def every_case():
    for moe in GROUPS["moe"]:
        yield [*ONE, f"moe={moe}"], {"document_mask": True}
        yield [*ONE, f"moe={moe}"], {"training": False}
    for position in GROUPS["model/position"]:
        for document_mask in (False, True):
            chosen = [*ONE, f"model/position={position}", "moe=dense"]
            yield chosen, {"document_mask": document_mask}
    for style in GROUPS["model/style"]:
        yield [*ONE, f"model/style={style}", "moe=switch"], {"recompute": True}
    for model in GROUPS["model"]:
        yield [f"model={model}", *SMALL, "moe=topk"], {}
    for optimizer in GROUPS["optimizer"]:
        for moe in ("dense", "fine_grained"):
            yield [*ONE, f"moe={moe}", f"optimizer={optimizer}"], {}
    # Experts in other types than bfloat16 wait: `llm.moe.experts`.
    everything = [*NANO, "model.dropout=0.1", *WINDOWS]
    yield [*everything, "moe=noisy_topk"], {"document_mask": True}
    yield [*everything, "moe=dense"], {"precision": torch.float16}
    yield [*everything, "moe=dense"], {"precision": None}


def all_cases() -> list[str]:
    fake_gpu.register()
    return fake_gpu.failures(list(every_case()))


@pytest.mark.slow
def test_no_preset_waits():
    told = in_a_new_process(all_cases)
    assert not told, "\n".join(told)
