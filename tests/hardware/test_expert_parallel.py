"""Experts spread over processes give what one process gives, and what they save opens anywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm.hardware.parallel import Parallel, expert_mesh
from llm.hardware.world import World
from llm.moe.exchange import split_experts
from llm.optimizer.adamw import AdamW
from llm.optimizer.schedule import Constant
from llm.runs import checkpoint
from tests.hardware.test_parallel import BRIEF, assert_same_curve, metrics
from tests.processes import in_processes, train_in_processes
from tests.toy_models import experts, tokens, transformer

#: Options and schemes that between them use every part: dropless and with capacity, several
#: micro-steps, biases of experts, shared experts, a bias for balance, choice by experts.
JOBS = {
    "topk": ["moe=topk", "optimizer=adamw", "train.grad_accum_steps=2", "model.bias=true"],
    "loss_free": ["moe=loss_free", "moe.n_shared=1", "optimizer=muon", "hardware.parallel=fsdp"],
    "gshard": ["moe=gshard", "moe.granularity=2", "optimizer=muon", "model.dropout=0.1"],
    "expert_choice": ["moe=expert_choice", "optimizer=adamw", "hardware.recompute=true"],
}


def assert_as_one_process(llm_train, processes: int, names: list[str]) -> None:
    jobs = [[*BRIEF, *JOBS[name], "train.batch_size=4"] for name in names]
    # Of few experts and random inputs, some process gets no row at all now and then.
    ends = train_in_processes(processes, *[[*job, "hardware.expert_parallel=2"] for job in jobs])
    for by_rank, job in zip(ends, jobs, strict=True):
        assert [end.code for end in by_rank] == [0] * processes, "".join(e.err for e in by_rank)
        folder = by_rank[0].folder.rename(f"spread-{processes}-{job[len(BRIEF)]}")
        alone = llm_train(*job, "hardware.parallel=auto")
        assert alone.code == 0, alone.err
        assert alone.folder == by_rank[0].folder  # the same identity
        assert_same_curve(folder, alone.folder)
        for mine, theirs in zip(metrics(folder), metrics(alone.folder), strict=True):
            np.testing.assert_allclose(mine["train/loss"], theirs["train/loss"], 0, 1e-5)
        pair = (
            checkpoint.read(checkpoint.list_steps(at / "checkpoints")[-1])
            for at in (folder, alone.folder)
        )
        spread, whole = pair
        for mine, theirs in ((spread.model, whole.model), (spread.optimizer, whole.optimizer)):
            assert mine.keys() == theirs.keys()
            for name in mine:
                torch.testing.assert_close(mine[name], theirs[name], atol=2e-4, rtol=1e-3)


def test_two_processes_with_half_the_experts_each_are_one(llm_train):
    assert_as_one_process(llm_train, 2, list(JOBS))


@pytest.mark.slow
def test_so_are_two_groups_of_two(llm_train):
    assert_as_one_process(llm_train, 4, list(JOBS))


def _spread(world: World, expert_parallel: int):
    """A toy with expert biases; every expert in one process, or so many shares of them."""
    world.start("cpu")
    parts = experts(n_experts=4, top_k=2)
    model = transformer(parts)
    mesh = expert_mesh("cpu", expert_parallel, world)
    if mesh is not None:
        split_experts(model, mesh["experts"])
    parallel = Parallel(model, "ddp" if world.size > 1 else "none", world, mesh)
    recipe = AdamW(
        lr=0.01,
        betas=[0.9, 0.95],
        eps=1e-8,
        weight_decay=0.1,
        warmup=0.0,
        schedule=Constant(),
    )
    return parallel, recipe.optimizer(model)


def _saved(rank: int) -> float:
    """Two steps of two groups of two; then the loss of rank 0's rows."""
    with World() as world:
        torch.manual_seed(0)
        parallel, optimizer = _spread(world, 2)
        for step in range(2):
            with parallel.accumulating(last=True):
                ids = tokens(2, 12, 10 * step + rank)
                parallel(ids, ids).loss_sum.backward()
            optimizer.step()
        content = checkpoint.snapshot(parallel.model, optimizer, world.first)
        if world.first:
            checkpoint.write(Path("saved"), 2, content, {})
        with torch.no_grad():
            return float(parallel.model.eval()(tokens(2, 12), tokens(2, 12)).loss_sum)


def _reopened(expert_parallel: int) -> tuple[bool, float]:
    """Whether what is read and shared out is, gathered again, what the file holds; and the loss."""
    with World() as world:
        parallel, optimizer = _spread(world, expert_parallel)
        found = checkpoint.read(Path("saved/step-00000002"))
        found.restore_model(parallel.model)
        found.restore_optimizer(optimizer)
        again = checkpoint.snapshot(parallel.model, optimizer, keep=True)
        pairs = ((again.model, found.model), (again.optimizer, found.optimizer))
        same = all(
            mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
            for mine, theirs in pairs
        )
        with torch.no_grad():
            loss = parallel.model.eval()(tokens(2, 12), tokens(2, 12)).loss_sum
        return same, float(loss)


def test_what_two_groups_of_two_saved_opens_in_one_process_and_with_another_split(workplace):
    losses = in_processes(4, _saved)
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-4)
    moments = checkpoint.read(Path("saved/step-00000002")).optimizer
    assert any(t.dim() == 3 and t.shape[0] == 4 for t in moments.values())  # whole ones
    for same, loss in [_reopened(1), *in_processes(4, lambda rank: _reopened(4))]:
        assert same and loss == pytest.approx(losses[0], abs=1e-4)


def test_what_cannot_be_spread_is_refused_in_one_line(llm_train, toy_text):
    alone = llm_train("moe=topk", "hardware.expert_parallel=2")
    assert alone.code == 2 and "torchrun --nproc-per-node 2" in alone.err
    wrong = {
        "no experts": ["moe=dense", "hardware.expert_parallel=2"],
        "does not divide the 5 experts": [
            "moe=topk",
            "moe.n_experts=5",
            "hardware.expert_parallel=2",
        ],
        "does not divide 2 processes": ["moe=topk", "hardware.expert_parallel=3"],
        "find_batch": ["moe=topk", "hardware.expert_parallel=2", "hardware.find_batch=true"],
        "fp16": ["moe=topk", "hardware.expert_parallel=2", "hardware.precision=fp16"],
    }
    jobs = [[*BRIEF, *overrides] for overrides in wrong.values()]
    for line, ends in zip(wrong, train_in_processes(2, *jobs), strict=True):
        assert [end.code for end in ends] == [2, 2]
        said = [t for t in (ends[0].err + ends[1].err).splitlines() if "llm.train:" in t]
        assert len(said) == 1 and line in said[0], said
        assert "hardware.expert_parallel" in said[0]
