"""Several processes give what one gives: curves, validation loss, checkpoints, one directory."""

import json
from pathlib import Path

import numpy as np
import torch

from llm.runs import checkpoint
from tests.processes import train_in_processes
from tests.toy import TOY

BRIEF = [*TOY, "train.budget=6steps", "train.checkpoint_every=3", "train.eval_every=3"]
DENSE = ["moe=dense", "model.dropout=0.1"]
EXPERTS = ["moe=switch", "model.dropout=0.1"]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(one: Path, other: Path) -> None:
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
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
