"""Experts spread over processes give what one process gives, and what they save opens anywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

import llm.report.observatory
from llm.config.errors import Refused
from llm.hardware.machine import Hardware
from llm.hardware.parallel import Parallel, expert_mesh
from llm.hardware.world import World
from llm.moe.exchange import check_split, split_experts
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


def _without_pictures(rank: int) -> None:
    llm.report.observatory.draw_routing = lambda file: None


def assert_as_one_process(llm_train, processes: int, names: list[str]) -> None:
    jobs = [[*BRIEF, *JOBS[name], "train.batch_size=4"] for name in names]
    # One process first: what it imports, the others inherit.
    alone = {}
    for name, job in zip(names, jobs, strict=True):
        end = llm_train(*job, "hardware.parallel=auto")
        assert end.code == 0, end.err
        alone[name] = end.folder.rename(f"alone-{name}")
    spread = [[*job, "hardware.expert_parallel=2"] for job in jobs]
    ends = train_in_processes(processes, *spread, before=_without_pictures)
    for name, by_rank in zip(names, ends, strict=True):
        assert [end.code for end in by_rank] == [0] * processes, "".join(e.err for e in by_rank)
        folder = by_rank[0].folder
        assert_same_curve(folder, alone[name])
        for mine, theirs in zip(metrics(folder), metrics(alone[name]), strict=True):
            np.testing.assert_allclose(mine["train/loss"], theirs["train/loss"], 0, 1e-5)
        many, one = (
            checkpoint.read(checkpoint.list_steps(at / "checkpoints")[-1])
            for at in (folder, alone[name])
        )
        for mine, theirs in ((many.model, one.model), (many.optimizer, one.optimizer)):
            assert mine.keys() == theirs.keys()
            for key in mine:
                torch.testing.assert_close(mine[key], theirs[key], atol=2e-4, rtol=1e-3)
    # Where experts are is no part of the identity: one process opens what the others have ended.
    again = llm_train(*jobs[-1], "hardware.parallel=auto")
    assert again.folder == folder and "finished already" in again.out


def test_two_processes_with_half_the_experts_each_are_one(llm_train):
    assert_as_one_process(llm_train, 2, ["topk", "loss_free", "gshard"])


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


@pytest.mark.parametrize(
    ("changes", "processes", "line"),
    [
        ({}, 1, "torchrun --nproc-per-node 2"),
        ({}, 3, "does not divide 3 processes"),
        ({"find_batch": True}, 2, "find_batch"),
        ({"precision": "fp16"}, 2, "fp16"),
    ],
)
def test_processes_that_cannot_share_experts_are_refused(changes, processes, line):
    world = World()
    world.size, world.launched = processes, processes > 1
    settings = {"device": "cpu", "precision": "fp32", "threads": None, "expert_parallel": 2}
    with pytest.raises(Refused, match=f"hardware.expert_parallel: .*{line}"):
        Hardware(**{**settings, **changes}).resolve(world)


def test_models_whose_experts_cannot_be_shared_are_refused():
    with pytest.raises(Refused, match=r"hardware.expert_parallel: .* has no experts"):
        check_split(transformer("dense"), 2)
    with pytest.raises(Refused, match=r"hardware.expert_parallel: .* the 10 experts"):
        check_split(transformer(experts(n_experts=5, top_k=2, granularity=2)), 4)
    check_split(transformer("dense"), 1)
    check_split(transformer("topk"), 4)
