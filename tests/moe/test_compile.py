"""Under torch.compile: one graph, and the same one however the loads vary."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.toy_models import experts, randomised, shape


@pytest.mark.parametrize(
    "changes",
    [
        {
            "top_k": 2,
            "jitter": 0.1,
            "noise": True,
            "balance": "switch+importance+load+z+bias",
            "n_shared": 1,
        },
        {"top_k": 2, "capacity_factor": 1.0, "overflow": "next"},
    ],
    ids=["everything", "capacity"],
)
def test_one_graph_for_all_loads(changes):
    torch._dynamo.reset()
    layer = randomised(experts(4, **changes)(shape(activation="gelu_tanh")))
    counter = CompileCounterWithBackend("aot_eager")

    def run(x):
        y, aux, router = layer(x)
        return y.square().sum() + sum(aux.values()), router["load_E"]

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    loads = []
    for push in (0.0, 2.0, 9.0):
        x = torch.randn(2, 9, 16, generator=generator)
        x += push * layer.router.weight_ED[0].detach()
        results = []
        for function in (compiled, run):
            layer.zero_grad()
            torch.manual_seed(0)
            loss, load = function(x)
            loss.backward()
            results.append([loss, load, *(p.grad.clone() for p in layer.parameters())])
        for one, other in zip(*results, strict=True):
            if "noise" not in changes:  # the compiler draws other numbers from the same seed
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        loads.append(results[0][1])
    assert counter.frame_count == 1
    assert loads[0].max() < loads[2].max()
    torch._dynamo.reset()


def test_one_graph_through_grouped_products(monkeypatch):
    """The way of GPUs, in bfloat16, with experts that get nothing and rows that nobody works on."""
    monkeypatch.setattr("llm.moe.experts._grouped_mm_takes", lambda *_: True)
    torch._dynamo.reset()
    layer = randomised(experts(4, 2, capacity_factor=1.0)(shape())).bfloat16()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: layer(x).y_BTD, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for push in (0.0, 9.0):
        x = torch.randn(2, 9, 16, generator=generator)
        x = (x + push * layer.router.weight_ED[0].detach()).bfloat16()
        results = []
        for function in (compiled, lambda x: layer(x).y_BTD):
            layer.zero_grad()
            y = function(x)
            y.float().square().sum().backward()
            results.append([y, *(p.grad.clone() for p in layer.parameters())])
            monkeypatch.setattr("llm.moe.experts._grouped_mm_takes", lambda *_: False)
        monkeypatch.setattr("llm.moe.experts._grouped_mm_takes", lambda *_: True)
        for one, other in zip(*results, strict=True):
            assert (one - other).norm() <= 0.03 * other.norm() + 1e-3
    torch._dynamo.reset()
