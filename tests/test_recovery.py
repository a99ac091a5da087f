"""What goes wrong in training is left out, gone round, or told; what was finished stays."""

import json
import math
import os
import signal
from collections.abc import Container
from pathlib import Path

import pytest

from llm.data.feed import Feed
from llm.runs import checkpoint
from llm.training.step import Gradients

LONG = ["train.budget=16steps", "train.spike_patience=3", "moe=dense"]


@pytest.fixture
def poison(monkeypatch):
    """Call it with a range or set of data rows: steps that read one get a loss of NaN.

    Returns the first rows of all steps taken, in order.
    """
    read: list[int] = []

    def install(bad: Container[int]) -> list[int]:
        take, compute = Feed.take, Gradients.compute

        def taking(self, first, following):
            read.append(first)
            return take(self, first, following)

        def computing(self, *arguments):
            totals = compute(self, *arguments)
            return totals._replace(loss=math.nan) if read[-1] in bad else totals

        monkeypatch.setattr(Feed, "take", taking)
        monkeypatch.setattr(Gradients, "compute", computing)
        return read

    return install


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_bad_step_is_left_out_and_counted(llm_train, poison):
    read = poison(range(10, 12))
    ended = llm_train(*LONG)
    assert ended.code == 0, ended.err
    assert read == list(range(0, 32, 2))
    assert [row.get("train/skipped", 0) for row in rows(ended.folder)] == [0] * 5 + [1] * 11
    assert rows(ended.folder)[5]["train/loss"] is None
    assert rows(ended.folder)[5]["tokens"] == rows(ended.folder)[4]["tokens"]


def test_bad_data_are_passed_over_from_the_last_good_checkpoint(llm_train, poison):
    """Steps 5 to 9 are bad: at the third one back to step 4, and on with the rows of step 8."""
    read = poison(range(10, 20))
    ended = llm_train(*LONG)
    assert ended.code == 0, ended.err
    assert read == [*range(0, 16, 2), *range(16, 40, 2)]
    assert "back to step 4" in ended.err
    assert [row["step"] for row in rows(ended.folder)] == list(range(1, 17))
    kept = checkpoint.list_steps(ended.folder / "checkpoints")
    state = checkpoint.read(kept[-1]).state
    assert (state["passed_over"], state["went_back"]) == (8, [])  # and forgot that it had to
    # and a resume knows which data these were
    reference = (ended.folder / "metrics.jsonl").read_bytes()
    (kept[-1] / "state.json").unlink()
    told = json.loads((ended.folder / "run.json").read_text())
    (ended.folder / "run.json").write_text(json.dumps({**told, "state": "running"}))
    assert llm_train(*LONG).code == 0
    assert read[-2:] == [36, 38]
    assert (ended.folder / "metrics.jsonl").read_bytes() == reference


def test_mishaps_far_apart_each_have_their_returns(llm_train, poison):
    read = poison({row for first in (10, 40, 60, 80) for row in range(first, first + 6)})
    ended = llm_train(*LONG, "train.budget=36steps", "train.eval_every=36")
    assert ended.code == 0, ended.err
    assert ended.err.count("back to step") == 4
    assert read == sorted(set(read))


def test_a_second_return_goes_past_all_that_was_read(llm_train, poison):
    """Steps 9 to 11 are bad, and after the return the data right behind them, too."""
    read = poison({*range(18, 24), *range(26, 32)})
    more = ["train.budget=18steps", "train.eval_every=18", "train.checkpoint_every=4"]
    ended = llm_train(*LONG, *more)
    assert ended.code == 0, ended.err
    assert "step 12: back to step 8" in ended.err and "step 12: back to step 4" in ended.err
    assert read == list(range(0, 60, 2))


def test_a_crash_right_after_a_return_does_not_lead_into_the_same_data(
    llm_train, poison, monkeypatch
):
    read = poison(range(10, 16))
    reference = llm_train(*LONG, "outputs=elsewhere").folder
    take = Feed.take

    def crashing(self, first, following):
        if read[-1] == 14 and first == 16:  # the first step after the return
            read.append(-1)
            raise ZeroDivisionError
        return take(self, first, following)

    monkeypatch.setattr(Feed, "take", crashing)
    assert llm_train(*LONG).code == 1
    again = llm_train(*LONG)
    assert again.code == 0, again.err
    assert "step 4" in again.err and "back to" not in again.err
    assert read[read.index(-1) :] == [-1, *range(16, 40, 2)]
    assert (again.folder / "metrics.jsonl").read_bytes() == (
        reference / "metrics.jsonl"
    ).read_bytes()


def test_a_damaged_checkpoint_is_not_gone_back_to(llm_train, poison, monkeypatch):
    poison(range(10, 16))
    write = checkpoint.write

    def tearing(parent, step, *rest):
        folder = write(parent, step, *rest)
        if parent.name == "checkpoints" and step == 4:
            (folder / "state.json").write_text("{")
        return folder

    monkeypatch.setattr(checkpoint, "write", tearing)
    ended = llm_train(*LONG)
    assert ended.code == 0, ended.err
    assert "state.json does not match" in ended.err and "step 8: back to step 2" in ended.err


def test_data_that_stay_bad_end_the_run_with_a_diagnosis(llm_train, poison):
    poison(range(10, 10**9))
    ended = llm_train(*LONG)
    assert ended.code == 1
    line = ended.err.strip().splitlines()[-1]
    assert "did not help" in line and "learning rate" in line
    assert "step-00000002" in line
    assert "back to step 4" in ended.err and "back to step 2" in ended.err


def test_fp16_finds_its_scale(llm_train, monkeypatch):
    """Where it was too high the step is counted, and no mishap of the data."""
    overflowed = Gradients.overflowed
    spoilt = [False, True, True, True, *[False] * 12]  # as many as would be a mishap
    monkeypatch.setattr(Gradients, "overflowed", lambda *a: spoilt.pop(0) or overflowed(*a))
    ended = llm_train(*LONG, "hardware.precision=fp16")
    assert ended.code == 0, ended.err
    told = rows(ended.folder)
    assert told[-1]["val/loss"] < told[3]["val/loss"]
    assert [row.get("train/overflowed", 0) for row in told] == [0, 1, 2, *[3] * 13]
    assert told[3]["tokens"] == told[0]["tokens"] and "train/skipped" not in told[-1]


def test_checkpoints_by_the_clock_and_those_that_are_kept_for_ever(llm_train):
    folder = llm_train(
        *LONG,
        "train.checkpoint_minutes=1e-9",
        "train.checkpoint_every=5",
        "train.keep_every=4",
    ).folder
    steps = [checkpoint.step_of(f) for f in checkpoint.list_steps(folder / "checkpoints")]
    # every 4th, the newest two, and the newest two multiples of checkpoint_every
    assert steps == [4, 8, 10, 12, 15, 16]


def test_training_does_not_wait_for_a_checkpoint(llm_train, monkeypatch):
    """While one is written steps are taken; the next one waits, so that there are never two."""
    events, write, look = [], checkpoint.write, Feed.take
    import threading

    stepped = threading.Event()

    def writing(parent, step, *rest):
        if parent.name == "checkpoints":
            events.append(("begun", step))
            stepped.clear()
            assert stepped.wait(300)
            events.append(("written", step))
        return write(parent, step, *rest)

    def stepping(self, *arguments):
        stepped.set()
        return look(self, *arguments)

    monkeypatch.setattr(checkpoint, "write", writing)
    monkeypatch.setattr(Feed, "take", stepping)
    # the last one is waited for, and no step would set it free
    monkeypatch.setattr("llm.training.writer.CheckpointWriter.settle", _settling(stepped))
    ended = llm_train(*LONG, "train.eval_every=16", "train.checkpoint_every=4")
    assert ended.code == 0, ended.err
    assert events == [(what, step) for step in (4, 8, 12, 16) for what in ("begun", "written")]


def _settling(stepped):
    from llm.training.writer import CheckpointWriter

    original = CheckpointWriter.settle

    def settle(self, needed=False):
        if needed:
            while self._written is not None and not self._written.done():
                stepped.set()
        return original(self, needed)

    return settle


def test_sigusr1_saves_and_slurm_gives_another_turn(llm_train, tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    take = Feed.take

    def taking(self, first, following):
        if first == 10:
            os.kill(os.getpid(), signal.SIGUSR1)
        return take(self, first, following)

    monkeypatch.setattr(Feed, "take", taking)
    ended = llm_train(*LONG)
    assert ended.code == 128 + signal.SIGUSR1
    assert "in the queue again" in ended.err
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "requeue 7"
    (folder,) = Path("outputs/runs").glob("[a-z]*")
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert checkpoint.list_steps(folder / "checkpoints")[-1].name == "step-00000006"
