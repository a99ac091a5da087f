"""What the engine does to a model and measures of it changes nothing that the model says."""

import json

import pytest
import torch

from llm.hardware import blocks, fit, peak
from llm.hardware.machine import Machine
from llm.hardware.stopwatch import Stopwatch
from tests.toy_models import randomised, tokens, transformer


def gradients(model) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(tokens(2, 12), tokens(2, 12))
    (output.loss_sum + sum(output.aux.values())).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_recomputed_blocks_have_the_same_gradients_and_keep_less():
    model = randomised(transformer("topk", n_layers=3))
    before = gradients(model)
    kept = fit._kept_bytes(1, lambda rows: model(tokens(2, 12), tokens(2, 12)))
    names = list(model.state_dict())
    blocks.recompute_blocks(model)
    torch.testing.assert_close(gradients(model), before)
    less = fit._kept_bytes(1, lambda rows: model(tokens(2, 12), tokens(2, 12)))
    assert less < kept / 2
    assert list(model.state_dict()) == names


def test_the_largest_batch_is_a_divisor_that_fits(monkeypatch):
    width = 1000

    def trial(rows: int) -> None:
        x = torch.ones(rows, width, requires_grad=True)
        x.exp().sum().backward()  # exp keeps its result: 4 bytes a number

    for room, expected in ((25, 24), (13, 12), (11, 8), (0.5, 1)):
        free = room * 4 * width * fit._BESIDE / fit._SHARE
        monkeypatch.setattr(fit, "free_memory", lambda free=free: free)
        assert fit.largest_fitting(24, "cpu", trial, 0) == expected


def test_find_batch_keeps_the_rows_of_a_step(llm_train, monkeypatch):
    monkeypatch.setattr(fit, "free_memory", lambda: 10**12)
    wanted = ["train.batch_size=1", "train.grad_accum_steps=4"]
    plain = llm_train(*wanted)
    found = llm_train(*wanted, "hardware.find_batch=true", "outputs=other")
    assert found.code == 0, found.err
    assert found.folder.name == plain.folder.name
    facts = json.loads((found.folder / "run.json").read_text())
    assert facts["micro_rows"] == 4
    curves = [
        [json.loads(line)["train/loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (plain.folder, found.folder)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)  # one call's balance loss sees all rows


def test_the_peak_is_measured_once_for_a_device(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SIMPLE_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "_SECONDS", 0.05)
    first = peak.measured_peak(Machine("cpu", "fp32"))
    assert 1e8 < first < 1e14
    monkeypatch.setattr(peak, "_measure", lambda machine: pytest.fail("measured again"))
    assert peak.measured_peak(Machine("cpu", "fp32")) == first


def test_a_stopwatch_adds_up_by_phase_and_begins_anew():
    watch = Stopwatch("cpu")
    for name in ("data", "forward", "data"):
        with watch.phase(name):
            torch.ones(10).sum()
    taken = watch.take()
    assert set(taken) == {"data", "forward"} and all(s > 0 for s in taken.values())
    assert watch.take() == {}


@pytest.mark.slow
def test_compiled_blocks_say_the_same():
    model = randomised(transformer("dense"))
    before = gradients(model)
    blocks.compile_blocks(model)
    torch.testing.assert_close(gradients(model), before, atol=1e-5, rtol=1e-4)
