"""Experts spread over processes give what one process gives, and what they save opens anywhere."""

import copy
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
from llm.moe.experts import Experts
from llm.optimizer.adamw import AdamW
from llm.optimizer.norms import Norms
from llm.optimizer.schedule import Constant
from llm.runs import checkpoint
from tests.hardware.test_parallel import BRIEF, assert_same_curve, metrics
from tests.processes import in_processes, train_in_processes
from tests.toy_models import experts, shape, tokens, transformer

#: Options and schemes that between them use every part: dropless and with capacity, several
#: micro-steps, biases of experts, shared experts, a bias for balance, choice by experts.
JOBS = {
    "topk": ["moe=topk", "optimizer=adamw", "train.grad_accum_steps=2", "model.bias=true"],
    "loss_free": ["moe=loss_free", "moe.n_shared=1", "optimizer=muon", "hardware.parallel=fsdp"],
    "gshard": ["moe=gshard", "moe.granularity=2", "optimizer=adamw", "model.dropout=0.1"],
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


@pytest.mark.slow
def test_two_processes_with_half_the_experts_each_are_one(llm_train):
    assert_as_one_process(llm_train, 2, ["loss_free", "gshard"])


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


def _trained(rank: int, size: int) -> tuple[list[float], float]:
    """Two steps of `size` processes on the same eight rows; the weights are saved.

    Returns: norms of the second step's gradients by role, and then the loss of some rows
    """
    with World() as world:
        torch.manual_seed(0)
        parallel, optimizer = _spread(world, min(size, 2))
        norms = Norms(parallel.model, size)
        for step in range(2):
            optimizer.zero_grad()
            for micro in range(2):
                ids = tokens(8, 12, 10 * step + micro)[world.share(8)]
                with parallel.accumulating(last=micro == 1):
                    (size * parallel(ids, ids).loss_sum).backward()
            lengths = world.sum(norms.gradients()).sqrt().tolist()
            optimizer.step()
        content = checkpoint.snapshot(parallel.model, optimizer, world.first)
        if world.first:
            checkpoint.write(Path(f"saved-by-{size}"), 2, content, {})
        with torch.no_grad():
            loss = parallel.model.eval()(tokens(2, 12), tokens(2, 12)).loss_sum
            return lengths, float(loss)


def _reopened(expert_parallel: int) -> tuple[bool, float]:
    """Whether what is read and shared out is, gathered again, what the file holds; and the loss."""
    with World() as world:
        parallel, optimizer = _spread(world, expert_parallel)
        found = checkpoint.read(Path("saved-by-4/step-00000002"))
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


def test_two_groups_of_two_train_one_model_which_opens_anywhere(workplace):
    lengths, loss = _trained(0, 1)
    for by_rank, its_loss in in_processes(4, lambda rank: _trained(rank, 4)):
        assert by_rank == pytest.approx(lengths, rel=1e-4)
        assert its_loss == pytest.approx(loss, abs=1e-3)
    one, four = (checkpoint.read(Path(f"saved-by-{size}/step-00000002")) for size in (1, 4))
    assert {n: t.shape for n, t in one.model.items()} == {n: t.shape for n, t in four.model.items()}
    assert one.optimizer.keys() == four.optimizer.keys()
    for key, moment in one.optimizer.items():
        torch.testing.assert_close(four.optimizer[key], moment, atol=1e-4, rtol=1e-3)
    for same, its_loss in [_reopened(1), *in_processes(4, lambda rank: _reopened(4))]:
        assert same and its_loss == pytest.approx(loss, abs=1e-3)


def _alone_and_spread(rank: int, chosen: list[list[int]]) -> list[tuple[np.ndarray, ...]]:
    """Outputs and gradients of experts of which process r sends its rows to `chosen[r]`."""
    with World() as world:
        world.start("cpu")
        torch.manual_seed(0)
        whole = Experts(shape(activation="swiglu"), 4, 0.5)
        spread = copy.deepcopy(whole)
        split_experts(spread, expert_mesh("cpu", 2, world)["experts"])
        found = []
        # What lies behind the last expert's rows (capacity dropped it) does not travel.
        given = [torch.randn(len(rows) + 3, 16) for rows in chosen]
        for layer in (whole, spread):
            mine = [rank] if layer is spread else [0, 1]
            d_x, y = {}, {}
            for r in mine:
                x_MD = given[r].clone().requires_grad_()
                counts = torch.bincount(torch.tensor(chosen[r], dtype=torch.long), minlength=4)
                y_MD = layer(x_MD, counts.cumsum(0).to(torch.int32))[: len(chosen[r])]
                y_MD.square().sum().backward()
                assert x_MD.grad is not None
                y[r], d_x[r] = y_MD.detach(), x_MD.grad[: len(chosen[r])]
            weights = [p.grad for p in layer.parameters()]
            weights = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in weights]
            found.append([t.numpy() for t in (y[rank], d_x[rank], *weights)])
        return list(zip(*found, strict=True))


@pytest.mark.parametrize("chosen", [[[0, 0, 1, 3], [1, 2]], [[0, 1, 1], [1]], [[], [2, 3]]])
def test_rows_find_their_experts_wherever_they_are(chosen):
    """Also where nobody asks for a process's experts, and where a process has no rows."""
    for pairs in in_processes(2, lambda rank: _alone_and_spread(rank, chosen)):
        assert not isinstance(pairs, BaseException), pairs
        for alone, spread in pairs:
            np.testing.assert_allclose(spread, alone, 1e-5, 1e-6)


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
