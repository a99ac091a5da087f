"""Several processes give what one gives: curves, validation loss, checkpoints, one directory."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.parallel import curves
from llm.config.errors import Failed
from llm.hardware.parallel import Parallel
from llm.hardware.world import World
from llm.optimizer.muon import Muon
from llm.optimizer.schedule import Constant
from llm.runs import checkpoint
from llm.training.step import Gradients
from tests.processes import in_processes, train_in_processes
from tests.toy import TOY
from tests.toy_models import tokens, transformer

BRIEF = [*TOY, "train.budget=6steps", "train.checkpoint_every=3", "train.eval_every=3"]
DENSE = ["moe=dense", "model.dropout=0.1"]
EXPERTS = ["moe=loss_free", "moe.balance=bias+switch+z", "model.dropout=0.1"]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(one: Path, other: Path) -> None:
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name == "moe/picture":
                assert mine[name] == theirs[name]
            else:
                np.testing.assert_allclose(mine[name], theirs[name], 1e-4, 1e-5, err_msg=name)


def test_two_processes_are_one_with_twice_the_micro_steps(llm_train):
    """1 process × accumulation 2 and 2 × 1: DDP with AdamW, FSDP with Muon; then reopened."""
    jobs = [
        [*BRIEF, *DENSE, "optimizer=adamw", "train.batch_size=4"],
        [*BRIEF, *EXPERTS, "optimizer=muon", "train.batch_size=4", "hardware.parallel=fsdp"],
    ]
    ends = train_in_processes(2, *jobs)
    for (first, second), job in zip(ends, jobs, strict=True):
        assert (first.code, second.code) == (0, 0), first.err + second.err
        assert second.out == "" and second.err == ""
        folder = first.folder
        facts = json.loads((folder / "run.json").read_text())
        assert facts["processes"] == 2
        split = [*job, "train.batch_size=2", "train.grad_accum_steps=2", "hardware.parallel=auto"]
        alone = llm_train(*split)
        assert alone.code == 0, alone.err
        assert_same_curve(folder, alone.folder)
        # the same identity as one process with these rows at once
        at_once = llm_train(*job, "hardware.parallel=auto")
        assert at_once.folder == folder and "finished already" in at_once.out
    newest = checkpoint.list_steps(folder / "checkpoints")[-1]
    whole = checkpoint.read(newest)
    reference = checkpoint.read(checkpoint.list_steps(alone.folder / "checkpoints")[-1])
    for mine, theirs in ((whole.model, reference.model), (whole.optimizer, reference.optimizer)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], atol=2e-4, rtol=1e-3)


def _model(size: int):
    """A toy with dense parts and experts whose numbers no process count divides evenly."""
    model = transformer("topk", style="qwen3", vocab_size=37)
    return Parallel(model, "fsdp" if size > 1 else "none", World())


def _saved(rank: int) -> None:
    with World() as world:
        world.start("cpu")
        model = _model(2).model
        optimizer = _muon().optimizer(model)
        for _ in range(2):
            model(tokens(2, 12, rank), tokens(2, 12, rank)).loss_sum.backward()
            optimizer.step()
        content = checkpoint.snapshot(model, optimizer, world.first)
        if world.first:
            checkpoint.write(Path("saved"), 2, content, {})


def _reopened(rank: int, size: int) -> bool | None:
    """Whether what is read and shared out is, gathered again, what the file holds."""
    with World() as world:
        world.start("cpu")
        model = _model(size).model
        optimizer = _muon().optimizer(model)
        found = checkpoint.read(Path("saved/step-00000002"))
        found.restore_model(model)
        found.restore_optimizer(optimizer)
        again = checkpoint.snapshot(model, optimizer, world.first)
        if not world.first:
            return None
        pairs = ((again.model, found.model), (again.optimizer, found.optimizer))
        return all(
            mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
            for mine, theirs in pairs
        )


def _muon() -> Muon:
    return Muon(
        lr=0.01,
        betas=[0.9, 0.95],
        eps=1e-8,
        weight_decay=0.1,
        warmup=0.0,
        schedule=Constant(),
        momentum=0.95,
        steps=5,
        update_rms=0.2,
    )


def test_a_checkpoint_of_two_processes_opens_in_four_and_in_one(workplace):
    assert in_processes(2, _saved) == [None, None]
    assert len(checkpoint.read(Path("saved/step-00000002")).optimizer) > 10
    assert in_processes(4, lambda rank: _reopened(rank, 4)) == [True, None, None, None]
    assert _reopened(0, 1)


def test_what_ends_one_process_ends_all_with_one_line(toy_text, tmp_path, monkeypatch):
    """Refused by all before training; stopped by a signal; failed in one alone.

    All wait for the last checkpoint after the signal, however long it is written.
    """
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def before(rank: int) -> None:
        from llm.hardware import world

        compute, write = Gradients.compute, checkpoint.write

        def computing(self, optimizer, step, *arguments):
            if self.seed == 6 and step == 1:
                world._PATIENCE = 0.1
                os.kill(os.getpid(), signal.SIGTERM)
            if self.seed == 7:
                world._PATIENCE = 10.0
                if rank == 1 and step == 3:
                    raise Failed("its fan has stopped")
            return compute(self, optimizer, step, *arguments)

        def writing(parent, step, *rest):
            if step == 2:
                time.sleep(1.5)  # others look for failures once a second
            return write(parent, step, *rest)

        Gradients.compute, checkpoint.write = computing, writing

    jobs = [["train.batch_size=3"], ["seed=6"], ["seed=7"]]
    ends = train_in_processes(2, *([*BRIEF, *DENSE, *job] for job in jobs), before=before)
    expected = [(2, "share evenly"), (143, None), (1, "fan")]
    for (first, second), (code, line) in zip(ends, expected, strict=True):
        assert (first.code, second.code) == (code, code), first.err + second.err
        said = [text for text in (first.err + second.err).splitlines() if "llm.train:" in text]
        assert len(said) == (line is not None), first.err + second.err
        assert line is None or line in said[0]
        assert "Traceback" not in first.err + second.err
    runs = {}
    for folder in Path("outputs/runs").glob("[a-z]*"):
        facts = json.loads((folder / "run.json").read_text())
        runs[facts["state"]] = folder, facts["reason"]
    assert runs.keys() == {"interrupted", "failed"}
    assert "fan" in runs["failed"][1]
    found, damaged = checkpoint.newest(runs["interrupted"][0] / "checkpoints")
    assert found.step == 2 and not damaged
    assert (tmp_path / "asked").read_text().splitlines().count("requeue 7") == 1


def _three_times_the_same(rank: int) -> list[bool]:
    """Whether the first steps of a process's life sum gradients as the later ones do."""
    with World() as world:
        world.start("cpu")
        parallel = Parallel(transformer("dense"), "ddp", world)
        gradients = []
        for _ in range(3):
            parallel.model.zero_grad(set_to_none=True)
            parallel(tokens(2, 12, rank), tokens(2, 12, rank)).loss_sum.backward()
            gradients.append([p.grad.clone() for p in parallel.model.parameters()])
        return [all(map(torch.equal, gradients[0], later)) for later in gradients[1:]]


def test_three_processes_sum_alike_from_their_first_step_on():
    """So that a resume is exact: of two numbers the sum is the same in any order, of three not."""
    assert in_processes(3, _three_times_the_same) == [[True, True]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ddp", "fsdp"])
def test_three_processes_resume_to_the_same_bytes(toy_text, scheme):
    job = [*BRIEF, *DENSE, "train.batch_size=3", f"hardware.parallel={scheme}"]
    interrupted = [*job, "train.checkpoint_every=100", "train.eval_every=6"]

    def before(rank: int) -> None:
        compute, stopped = Gradients.compute, []

        def computing(self, optimizer, step, *arguments):
            if step == 2 and Path("outputs/runs").exists() and not stopped:
                stopped.append(step)
                self.signals.received = signal.SIGTERM
            return compute(self, optimizer, step, *arguments)

        Gradients.compute = computing

    alone = [*interrupted, "outputs=elsewhere"]
    ends = train_in_processes(3, alone, interrupted, interrupted, before=before)
    assert [by_rank[0].code for by_rank in ends] == [0, 143, 0]
    one, other = ends[0][0].folder, ends[2][0].folder
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = f"checkpoints/step-00000006/{name}"
        assert (one / file).read_bytes() == (other / file).read_bytes(), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_four_processes_draw_the_curve_of_one_with_four_micro_steps(llm_train):
    """To 1e-5 nats, dense and with experts, by DDP and by FSDP."""
    settings = [*curves.SETTINGS, "train.budget=20steps"]
    cases = [(model, scheme) for model in curves.MODELS for scheme in curves.SCHEMES]
    alone = {}
    for model, chosen in curves.MODELS.items():
        ended = llm_train(*settings, *chosen, *curves.split(4))
        assert ended.code == 0, ended.err
        alone[model] = ended.folder
    jobs = [
        [*settings, *curves.MODELS[model], *curves.at_once(4, scheme), f"outputs={scheme}"]
        for model, scheme in cases
    ]
    ends = train_in_processes(4, *jobs)
    for (model, scheme), by_rank in zip(cases, ends, strict=True):
        assert by_rank[0].code == 0, by_rank[0].err
        found = curves.differences(by_rank[0].folder, alone[model])
        assert max(found.values()) <= 1e-5, (model, scheme, found)
