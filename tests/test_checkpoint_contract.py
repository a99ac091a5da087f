"""The checkpoint contract: whole or absent, exact, and nothing in it is executed."""

import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch

import llm
from experiments.crash import kill
from experiments.crash.plug import Command
from llm.config.errors import Failed, Refused
from llm.runs import checkpoint
from llm.runs.directory import Run
from llm.train import train
from llm.training.writer import CheckpointWriter
from tests.processes import train_in_a_fork

LONG = ["train.budget=12steps", "model.dropout=0.1", "moe=switch"]


def killed_at_write(n: int) -> None:
    """Pull the plug of this process at its n-th write of a file: in the middle of a save, sooner
    or later, of checkpoint, best weights or run.json."""
    original, count = os.replace, itertools.count(1)

    def replace(source, target):
        if next(count) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)

    os.replace = replace


def newest(folder: Path) -> Path:
    return checkpoint.list_steps(folder / "checkpoints")[-1]


def same_bytes(a: Path, b: Path) -> bool:
    files = ["metrics.jsonl"]
    for name in ("model", "optimizer"):
        files.append(f"{newest(a).relative_to(a)}/{name}.safetensors")
    return all((a / file).read_bytes() == (b / file).read_bytes() for file in files)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("n", [6, *(pytest.param(n, marks=SLOW) for n in (12, 18, 22))])
def test_killed_at_any_write_a_run_ends_with_the_same_bytes(llm_train, trained, n):
    alone = trained(*LONG, "outputs=elsewhere")
    killed = train_in_a_fork(*LONG, before=lambda: killed_at_write(n))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    continued = llm_train(*LONG)
    assert continued.code == 0, continued.err
    assert same_bytes(alone.folder, continued.folder)


@pytest.mark.slow
def test_killed_at_random_moments_too(tmp_path):
    kill.write_text(tmp_path / "text.txt")
    settings = [f"data.path={tmp_path / 'text.txt'}", "train.budget=60steps"]
    command = Command("llm.train", train, tmp_path / "log.txt")
    found = kill.trial(command, "switch", 3, settings, 0, tmp_path)
    assert found.problems == [] and len(found.steps) == 3


def test_early_checkpoints_differ_from_late_ones(trained):
    folder = trained(*LONG).folder
    early, late = (checkpoint.read(f) for f in checkpoint.list_steps(folder / "checkpoints"))
    assert early.step < late.step
    for name in early.model:
        assert not torch.equal(early.model[name], late.model[name]), name


class Plug(BaseException):
    """Pulled."""


def test_the_same_step_again_loses_nothing_whenever_the_plug_is_pulled(tmp_path, monkeypatch):
    """At each of a save's three renames; then the one or the other is there, whole."""
    content, replace = checkpoint.Snapshot({"w": torch.ones(2)}, None), os.replace
    checkpoint.write(tmp_path, 4, content, {"life": 0})
    for n in (1, 2, 3):
        count = iter(range(1, 9))

        def pulled(source, target, n=n, count=count):
            if next(count) == n:
                raise Plug
            replace(source, target)

        monkeypatch.setattr(os, "replace", pulled)
        with pytest.raises(Plug):
            checkpoint.write(tmp_path, 4, content, {"life": n})
        monkeypatch.setattr(os, "replace", replace)
        checkpoint.mend(tmp_path)
        found, damaged = checkpoint.newest(tmp_path)
        assert found.state["life"] == 0 and not damaged
    checkpoint.write(tmp_path, 4, content, {"life": 4})
    assert checkpoint.newest(tmp_path)[0].state["life"] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000004"]


def test_whatever_checkpoint_a_run_goes_on_from_its_best_weights_are_there(tmp_path):
    run = Run(tmp_path, {}, None)
    writer = CheckpointWriter(run, 4, None, print)
    content = checkpoint.Snapshot({"w": torch.ones(2)}, {})
    bests = {2: [2], 6: [2, 6], 10: [2, 6, 10], 14: [6, 10, 14], 15: [6, 10, 15]}
    for step in range(2, 16):
        regular = {"some": "state"} if step in (4, 8, 12) else None
        best = {"val_loss": 1 / step} if step in bests else None
        if regular or best:
            writer.put(step, content, regular, best)
            writer.settle()
        if best:
            kept = [checkpoint.step_of(folder) for folder in checkpoint.list_steps(run.best)]
            assert kept == bests[step]
    writer.close()


@pytest.mark.parametrize("harm", ["cut", "flip", "missing"])
def test_a_damaged_newest_one_falls_back_and_says_so(llm_train, trained, harm):
    folder = trained(*LONG).folder
    reference = (folder / "metrics.jsonl").read_bytes()
    weights = newest(folder) / "model.safetensors"
    content = weights.read_bytes()
    if harm == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        weights.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    else:
        weights.unlink()
    told = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**told, "state": "running"}))
    half = folder / "checkpoints" / ".step-00000099.tmp"  # of a save that a crash broke off
    half.mkdir()
    again = llm_train(*LONG)
    assert again.code == 0
    assert "going back to the one before" in again.err
    assert not half.exists()
    assert (folder / "metrics.jsonl").read_bytes() == reference


def test_all_damaged_is_said_and_not_overwritten(llm_train, trained):
    folder = trained(*LONG).folder
    for step in checkpoint.list_steps(folder / "checkpoints"):
        (step / "model.safetensors").write_bytes(b"")
    told = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**told, "state": "running"}))
    again = llm_train(*LONG)
    assert again.code == 1
    assert "run.existing=restart" in again.err.splitlines()[-1]


def test_another_format_is_refused_by_name(trained):
    folder = newest(trained().folder)
    state = json.loads((folder / "state.json").read_text())
    checkpoint_state = json.dumps({**state, "format": 99}).encode()
    (folder / "state.json").write_bytes(checkpoint_state)
    import hashlib

    sums = json.loads((folder / "checksums.json").read_text())
    sums["state.json"] = hashlib.sha256(checkpoint_state).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(Refused, match="format 99"):
        checkpoint.read(folder)


def test_load_run_gives_the_weights_of_the_reported_loss(trained):
    ended = trained(*LONG)
    run = llm.load_run(ended.folder)
    assert run.step == 12
    assert run.facts["val_loss"] == run.metrics[-1]["val/loss"]
    assert run.tokenizer.decode(run.tokenizer.encode("a cat")) == "a cat"
    assert run.config["moe"]["n_experts"] == 4
    tokens = torch.tensor([run.tokenizer.encode("a cat")])
    assert run.model(tokens).logits_BTV.shape == (1, 5, 257)
    earlier = llm.load_run(checkpoint.list_steps(ended.folder / "checkpoints")[0])
    assert earlier.step < 12
    assert llm.load_run(ended.folder, which="best").step == run.facts["best_step"]


def test_opening_executes_nothing(trained, tmp_path):
    folder = trained().folder
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace("llm.model.position.Learned", "os.system").replace(
            "plugins: []", "plugins: [os]"
        )
    )
    with pytest.raises(Refused, match=r"os\.system"):
        llm.load_run(folder)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="no run directory"):
        llm.load_run(tmp_path)


def test_reading_a_torn_folder_names_it(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(Failed, match="damaged"):
        checkpoint.read(tmp_path / "step-00000001")
