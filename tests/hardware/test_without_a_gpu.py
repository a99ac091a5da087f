"""What a GPU would refuse, and where the host would wait for it, found without one."""

import pytest
import torch

from llm.config.choices import Choices
from llm.layers.norm import RMSNorm
from tests.hardware import fake_gpu
from tests.processes import in_processes

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


def in_one_process(work):
    """What `work` answers in a process of its own, where the device is."""
    (told,) = in_processes(1, lambda rank: work())
    assert isinstance(told, list), told
    return told


def test_no_step_waits_and_what_waits_is_found_with_its_line():
    cases = [
        (
            [*ONE, "moe=topk", "optimizer=muon", *WINDOWS, "model.window=8"],
            {"document_mask": True},
        ),
        ([*ONE, "moe=noisy_topk", "optimizer=adamw", "model.dropout=0.1"], {"recompute": True}),
        ([*ONE, "moe=switch", "model.attention_softcap=20"], {"training": False}),
    ]

    def work() -> list[str]:
        fake_gpu.register()
        told = fake_gpu.failures(cases)
        for spoilt in SPOILT.values():
            RMSNorm.forward = spoilt
            told += fake_gpu.failures([([*ONE, "moe=dense"], {"training": False})]) or ["nothing"]
        return told

    told = in_one_process(work)
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


@pytest.mark.slow
def test_no_preset_waits():
    def work() -> list[str]:
        fake_gpu.register()
        return fake_gpu.failures(list(every_case()))

    told = in_one_process(work)
    assert not told, "\n".join(told)
