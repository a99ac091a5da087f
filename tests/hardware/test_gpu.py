"""On a real GPU: what is judged elsewhere on a CPU holds there, and nothing waits for it.

    python -m pytest tests/hardware/test_gpu.py

A CPU in float32 is the judge. Skipped where there is no CUDA device.
"""

import json
import signal

import numpy as np
import pytest
import torch
from torch import nn

from llm.data.batches import Batch
from llm.hardware.machine import Machine
from llm.hardware.parallel import Parallel
from llm.hardware.signals import StopSignals
from llm.hardware.stopwatch import Stopwatch
from llm.hardware.world import World
from llm.layers import cross_entropy
from llm.layers.cross_entropy import linear_cross_entropy, plain_cross_entropy
from llm.layers.noise import number_places
from llm.model import windowed
from llm.moe.balance import after_step
from llm.moe.experts import _grouped_mm_takes
from llm.optimizer.adamw import AdamW
from llm.optimizer.muon import Muon
from llm.optimizer.norms import Norms
from llm.optimizer.schedule import Constant
from llm.training.step import Gradients
from tests.toy_models import experts, randomised, reading, shape, tokens, transformer

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
ON_DEVICE, ON_CPU = ["hardware=gpu"], ["hardware=cpu", "hardware.precision=fp32"]
#: What the command's toy becomes: `nano`, small, with widths that every kernel takes.
NANO = ["model=nano", "model.d_model=64", "model.n_heads=4", "model.d_ff=64"]
NANO += ["model.max_seq_len=64", "train.batch_size=4", "train.preflight=false"]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """What a test sets for the whole process ends with it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the deterministic ones
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


def rows(folder, name="metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(ended) -> list[float]:
    assert ended.code == 0, ended.err
    return [row["train/loss"] for row in rows(ended.folder)]


def apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖difference‖ / ‖judge‖, on the CPU."""
    mine, theirs = mine.detach().cpu().double(), theirs.detach().cpu().double()
    return float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12))


@pytest.mark.parametrize("moe", ["dense", "topk"])
def test_training_draws_the_curve_of_a_cpu(llm_train, moe):
    """In bfloat16, compiled and not; and what is measured of it is in the log."""
    job = [*NANO, f"moe={moe}", "train.budget=8steps"]
    judge = losses(llm_train(*job, *ON_CPU, "outputs=judge"))
    assert judge[-1] < judge[0]
    for compiled in ("false", "true"):
        settings = ["hardware.precision=bf16", f"hardware.compile={compiled}"]
        ended = llm_train(*job, *ON_DEVICE, *settings, f"outputs=compiled-{compiled}")
        assert losses(ended) == pytest.approx(judge, abs=0.05)
        facts = json.loads((ended.folder / "run.json").read_text())
        assert facts["device"] == DEVICE and facts["compile"] is (compiled == "true")
        last = rows(ended.folder, "perf.jsonl")[-1]
        assert last["perf/memory_peak"] > 0 and last["perf/mfu"] > 0
        assert facts["peak_memory"] > 0


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_deterministic_runs_end_with_the_same_bytes(llm_train, monkeypatch, compiled):
    """Twice, and again after a signal and a resume."""
    job = [*NANO, *ON_DEVICE, "moe=topk", "model.dropout=0.1", "hardware.deterministic=true"]
    job += ["hardware.precision=bf16", f"hardware.compile={compiled}", "train.budget=6steps"]

    def bytes_of(ended) -> tuple[bytes, bytes]:
        assert ended.code == 0, ended.err
        weights = ended.folder / "checkpoints" / "step-00000006" / "model.safetensors"
        return weights.read_bytes(), (ended.folder / "metrics.jsonl").read_bytes()

    first = bytes_of(llm_train(*job, "outputs=first"))
    assert bytes_of(llm_train(*job, "outputs=second")) == first
    compute = Gradients.compute

    def stopped_at_three(self, optimizer, step, *arguments):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return compute(self, optimizer, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Gradients, "compute", stopped_at_three)
        assert llm_train(*job, "outputs=third").code == 128 + signal.SIGTERM
    assert bytes_of(llm_train(*job, "outputs=third")) == first


def test_fp16_leaves_out_what_overflows_and_trains(llm_train, monkeypatch):
    def scaler(machine) -> torch.amp.GradScaler:  # far too high at first: halved at each overflow
        assert machine.precision == "fp16"
        return torch.amp.GradScaler(machine.device, init_scale=2.0**32)

    monkeypatch.setattr(Machine, "scaler", scaler)
    job = [*NANO, *ON_DEVICE, "moe=dense", "hardware.precision=fp16", "hardware.compile=false"]
    ended = llm_train(*job, "train.budget=40steps")
    curve = losses(ended)
    assert curve[-1] < curve[0] - 0.2
    seen = [row["tokens"] for row in rows(ended.folder)]
    left_out = sum(after == before for before, after in zip([0, *seen], seen, strict=False))
    assert 3 <= left_out <= 30
    assert rows(ended.folder)[-1]["train/overflowed"] == left_out
    assert "train/skipped" not in rows(ended.folder)[-1]  # no fault of the data


def test_find_batch_finds_the_rows_that_fit(llm_train):
    job = [*NANO, *ON_DEVICE, "moe=topk", "hardware.precision=bf16", "hardware.compile=false"]
    ended = llm_train(*job, "train.grad_accum_steps=4", "hardware.find_batch=true")
    losses(ended)
    assert json.loads((ended.folder / "run.json").read_text())["found_batch"] == {"1": 16}


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_products_are_those_of_a_loop(bias):
    """With experts without rows, in memory that held something else before."""
    judge = randomised(experts(6, 2)(shape(activation="swiglu", bias=bias))).experts
    layer = randomised(experts(6, 2)(shape(activation="swiglu", bias=bias))).experts.to(DEVICE)
    x_MD = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    ends_E = torch.tensor([0, 9, 9, 21, 33, 33], dtype=torch.int32)
    weights_MD = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    results = []
    for module, device in ((judge, "cpu"), (layer, DEVICE)):
        leaf = x_MD.to(device).requires_grad_()
        spoilt = [torch.full((n,), torch.nan, device=device) for n in (64, 512, 4096) * 20]
        del spoilt
        with torch.autocast(device, torch.bfloat16, enabled=device == DEVICE):
            y_MD = module(leaf, ends_E.to(device))
        (y_MD.float() * weights_MD.to(device))[:33].sum().backward()
        results.append([y_MD[:33], leaf.grad[:33], *(p.grad for p in module.parameters())])
    low = x_MD.to(DEVICE, torch.bfloat16)
    assert _grouped_mm_takes(low, layer.up_EDF.bfloat16())
    for theirs, mine in zip(*results, strict=True):
        assert apart(mine, theirs) < 0.03
    for parameter in layer.parameters():
        assert not parameter.grad[[0, 2, 5]].any()


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    settings = {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    settings |= {"warmup": 0.0, "schedule": Constant()}
    if name == "muon":
        return Muon(**settings, momentum=0.95, steps=5, update_rms=0.2).optimizer(model)
    return AdamW(**settings).optimizer(model)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("moe", ["dense", "topk"])
def test_a_step_waits_for_the_totals_alone(monkeypatch, name, moe):
    """On GPUs before Hopper PyTorch's grouped products wait, too."""
    if moe == "topk" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("grouped products of this GPU wait for the loads")
    model = transformer(
        moe if moe == "dense" else experts(4, 2, jitter=0.1, balance="switch+z+bias"),
        style="qwen3",
        d_model=64,
        d_ff=64,
        n_kv_heads=2,
        max_seq_len=64,
        window=[16, None],
        dropout=0.1,
    )
    number_places(model)
    model.to(DEVICE)
    optimizer, norms = optimizer_of(name, model), Norms(model)
    machine = Machine(DEVICE, "bf16")
    gradients = Gradients(
        *(Parallel(model, "none", World()), machine, machine.scaler(), norms),
        *(StopSignals(), Stopwatch(DEVICE), 0, 4),
        reading(precision="bf16", document_mask=True),
    )
    ids_RT = tokens(8, 64).numpy()
    batch = Batch(ids_RT, ids_RT, ids_RT, np.zeros_like(ids_RT))
    gradients.compute(optimizer, 0, batch, 0.0)  # the first of all sets up a lot
    optimizer.step()
    totals_of = Gradients._totals

    def may_wait(self, *arguments):
        torch.cuda.set_sync_debug_mode("default")
        return totals_of(self, *arguments)

    monkeypatch.setattr(Gradients, "_totals", may_wait)
    torch.cuda.set_sync_debug_mode("error")
    try:
        totals = gradients.compute(optimizer, 1, batch, 0.0)
        torch.cuda.set_sync_debug_mode("error")
        norms.clip(totals.norm, totals.norm / 2)
        optimizer.step()
        after_step(model, totals.router.get("load_E"))
        with pytest.raises(RuntimeError, match="synchroniz"):  # that it would be noticed
            torch.ones(1, device=DEVICE).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < totals.loss < 10 and totals.norm > 0


ATTENTION = {
    "causal": {},
    "documents": {"documents": True},
    "grouped": {"n_kv_heads": 2},
    "grouped, documents": {"n_kv_heads": 2, "documents": True},
    "alibi": {"position": "alibi"},
    "soft-cap": {"attention_softcap": 5.0, "n_kv_heads": 2},
    "window": {"window": 8},
    "window, sinks, documents, grouped": {
        "window": 8,
        "n_sinks": 2,
        "documents": True,
        "n_kv_heads": 1,
    },
    "window, alibi, soft-cap": {"window": [8, None], "position": "alibi", "attention_softcap": 5.0},
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_is_that_of_a_cpu(monkeypatch, kind):
    """Losses and gradients, in float32 closely and in bfloat16 as far as it goes."""
    monkeypatch.setattr(windowed, "LEAST_BLOCK", 8)
    changes = dict(ATTENTION[kind])
    documents = changes.pop("documents", False)
    settings = {"style": "qwen3", "d_model": 64, "d_ff": 64, "max_seq_len": 48, **changes}
    ids = tokens(2, 48)
    results = []
    for device, low in (("cpu", False), (DEVICE, False), (DEVICE, True)):
        model = randomised(transformer("dense", **settings)).to(device)
        given = {"document_ids_BT": (ids > 30).int().cumsum(1).to(device)} if documents else {}
        with torch.autocast(device, torch.bfloat16, enabled=low):
            output = model(ids.to(device), ids.roll(-1, 1).to(device), **given)
        output.loss_sum.backward()
        results.append([output.nats_BT, *(p.grad for p in model.parameters())])
    judge, same, low = results
    assert apart(same[0], judge[0]) < 1e-4
    assert apart(low[0], judge[0]) < 0.05
    for limit, found in ((1e-3, same), (0.2, low)):
        whole = [torch.cat([g.cpu().flatten() for g in grads[1:]]) for grads in (found, judge)]
        assert apart(*whole) < limit


@pytest.mark.parametrize("softcap", [None, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_heads_loss_is_the_plain_one(monkeypatch, softcap, dtype):
    """At a vocabulary that the kernels would like to be rounder, in more than one chunk."""
    monkeypatch.setattr(cross_entropy, "_CHUNK_NUMBERS", {DEVICE: 2**15})
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(600, 64, generator=generator).to(dtype)
    weight_VD = torch.randn(257, 64, generator=generator) / 4
    targets_N = torch.randint(257, (600,), generator=generator)
    targets_N[::7] = -100
    results = []
    for device in ("cpu", DEVICE):
        # The judge is float32 of the same rounded numbers.
        hidden = hidden_ND.to(device).float() if device == "cpu" else hidden_ND.to(device)
        weight = weight_VD.to(dtype).float().to(device)
        hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
        if device == "cpu":
            nats_N = plain_cross_entropy(hidden, weight, targets_N, softcap)
            loss = nats_N.sum()
        else:
            loss, nats_N = linear_cross_entropy(hidden, weight, targets_N.to(device), softcap)
        loss.backward()
        results.append([loss, nats_N, hidden.grad, weight.grad])
    limits = (1e-5,) * 4 if dtype is torch.float32 else (2e-3, 1e-2, 2e-2, 2e-2)
    for theirs, mine, limit in zip(*results, limits, strict=True):
        assert apart(mine, theirs) < limit


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_goes_on_from_a_checkpoint(name):
    """Its counts of steps, on the CPU in the file, are where the kernel wants them."""
    judge, model = (randomised(transformer("topk", style="qwen3")) for _ in range(2))
    model.to(DEVICE)
    theirs, mine = optimizer_of(name, judge), optimizer_of(name, model)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(judge.parameters(), model.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.to(DEVICE)
        theirs.step()
        mine.step()
        state = mine.state_dict()
        held = {i: {n: t.cpu() for n, t in slot.items()} for i, slot in state["state"].items()}
        mine = optimizer_of(name, model)
        mine.load_state_dict({"state": held, "param_groups": state["param_groups"]})
    counts = [slot["step"] for slot in mine.state.values() if "step" in slot]
    assert counts and all(count.device.type == DEVICE for count in counts)
    for one, other in zip(judge.parameters(), model.parameters(), strict=True):
        assert apart(other, one) < (0.02 if name == "muon" else 1e-5)
