"""What the engine does to a model and measures of it changes nothing that the model says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm import evaluate
from llm.config.errors import Failed
from llm.config.root import Budget
from llm.data.batches import Batch
from llm.hardware import blocks, fit, peak
from llm.hardware.machine import EAGER_UTILISATION, Hardware, Machine, eager_step_seconds
from llm.hardware.stopwatch import Stopwatch
from llm.model.transformer import Transformer
from llm.training import step
from llm.training.outcome import Course
from llm.training.state import TrainState
from tests.toy_models import randomised, reading, tokens, transformer


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
    with blocks.one_kept(model):  # what a step needs when a block's turn to be recomputed comes
        most = fit._kept_bytes(1, lambda rows: model(tokens(2, 12), tokens(2, 12)))
    assert less + kept / 4 < most < kept
    torch.testing.assert_close(gradients(model), before)
    assert less == fit._kept_bytes(1, lambda rows: model(tokens(2, 12), tokens(2, 12)))
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
    monkeypatch.setattr(fit, "free_memory", lambda: 25 * 4 * width * fit._BESIDE / fit._SHARE)
    assert fit.largest_fitting(24, "cpu", trial, 0, local_size=2) == 12


def test_find_batch_keeps_the_rows_of_a_step(llm_train, monkeypatch):
    """Also of a run that first ended for want of memory: what it was given is not what fits."""
    monkeypatch.setattr(fit, "free_memory", lambda: 10**12)
    wanted = ["train.batch_size=1", "train.grad_accum_steps=4"]
    plain = llm_train(*wanted)
    assert "found_batch" not in json.loads((plain.folder / "run.json").read_text())
    with monkeypatch.context() as broken:
        broken.setattr(step.Gradients, "compute", lambda *given: (_ for _ in ()).throw(Failed("!")))
        assert llm_train(*wanted, "outputs=other").code == 1
    found = llm_train(*wanted, "hardware.find_batch=true", "outputs=other")
    assert found.code == 0, found.err
    assert found.folder.name == plain.folder.name
    facts = json.loads((found.folder / "run.json").read_text())
    assert facts["found_batch"] == {"1": 4}
    curves = [
        [json.loads(line)["train/loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (plain.folder, found.folder)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)  # one call's balance loss sees all rows


def test_a_found_batch_is_that_of_so_many_processes():
    """Another number would get no rows of a micro-step, or leave some out."""
    run = SimpleNamespace(facts={})
    run.update = run.facts.update
    for size, finds, rows in ((1, 3, 3), (2, 5, 10), (1, 8, 3), (2, 8, 10)):
        world = SimpleNamespace(size=size, decide=lambda decision: decision())
        assert step.micro_batch(run, world, lambda found=finds: found) == rows


def test_rows_that_cannot_be_shared_evenly_are_an_error():
    def gradients_of(processes: int, micro_rows: int) -> step.Gradients:
        parallel = SimpleNamespace(world=SimpleNamespace(size=processes))
        return step.Gradients(parallel, *[None] * 6, micro_rows, reading())

    with pytest.raises(ValueError, match="2 processes cannot share 3 rows evenly"):
        gradients_of(2, 3)
    rows_RT = np.zeros((6, 5), np.int64)
    with pytest.raises(ValueError, match="6 rows are no multiple of 4"):
        gradients_of(2, 4).compute(None, 0, Batch(*[rows_RT] * len(Batch._fields)), 0.0)


def test_find_batch_tries_the_program_that_trains_and_caps_evaluation(llm_train, monkeypatch):
    """Recomputed blocks, documents apart; an evaluation takes no more rows than fitted."""
    calls, evaluated = [], []
    forward, examine = Transformer.forward, evaluate.examine

    def spy(model, tokens_BT, *given, **named):
        masked = named.get("document_ids_BT") is not None
        calls.append((len(tokens_BT), masked, "forward" in vars(model.blocks[0])))
        return forward(model, tokens_BT, *given, **named)

    def trying(rows, device, trial, reserve, local_size):
        calls.clear()
        trial(2)
        assert calls == [(2, True, True)]
        return 1

    def examining(model, exam, reading, *more):
        evaluated.append(reading.eval_rows)
        return examine(model, exam, reading, *more)

    monkeypatch.setattr(Transformer, "forward", spy)
    monkeypatch.setattr(step, "largest_fitting", trying)
    monkeypatch.setattr(evaluate, "examine", examining)
    settings = ["hardware.recompute=true", "data.document_mask=true", "train.batch_size=4"]
    ended = llm_train(*settings, "hardware.find_batch=true", "train.budget=1steps")
    assert ended.code == 0, ended.err
    assert evaluated == [1]
    assert json.loads((ended.folder / "run.json").read_text())["reading"]["eval_rows"] == 1


def test_the_peak_is_measured_once_for_a_device(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SIMPLE_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "_SECONDS", 0.05)
    first = peak.measured_peak(Machine("cpu", "fp32"))
    assert 1e8 < first < 1e14
    monkeypatch.setattr(peak, "_measure", lambda machine: pytest.fail("measured again"))
    assert peak.measured_peak(Machine("cpu", "fp32")) == first


@pytest.mark.parametrize(
    ("budget", "device", "rate", "compiled"),
    [
        ("1e17flops", "cuda", 1e15, False),  # 100 seconds
        ("1e18flops", "cuda", 1e15, True),
        ("1e18flops", "cpu", 1e10, False),
        ("100Mtok", "cuda", 1e15, False),  # 100 seconds of operations, in steps of 64 ms
        ("300Mtok", "cuda", 1e15, True),
        ("17000steps", "cuda", 1e30, False),  # nothing but launching kernels
        ("19000steps", "cuda", 1e30, True),
        ("2min", "cuda", 1e15, False),
        ("10min", "cuda", 1e15, True),
    ],
)
def test_compiling_is_decided_by_the_length_of_the_run(budget, device, rate, compiled):
    """64 rows of 1,000 tokens a step, 1e9 FLOPs a token; once decided it stays."""
    a_step = eager_step_seconds(64_000 * 1e9, rate / EAGER_UTILISATION)
    seconds = Course(Budget.parse(budget), TrainState(), 64, 1000, 10**6, 10**9, a_step).seconds
    made = Machine(device, "fp32")
    node = {"device": device, "precision": "fp32", "threads": None}
    assert Hardware(**node).compiles(made, {}, seconds) == compiled
    assert Hardware(**node).compiles(made, {"compile": not compiled}, seconds) != compiled
    assert Hardware(**node, compile=True).compiles(made, {"compile": False}, seconds)


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
