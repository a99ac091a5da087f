"""The run contract: one directory, one identity, one writer; continued or answered, never mixed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.crash import claims
from experiments.crash.claims import storm
from llm.config.errors import Refused
from llm.runs import directory
from llm.runs.identity import config_hash, run_id
from tests.processes import train_in_a_fork

FACTS = {"state": "running", "code_hash": "one"}


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.pictures
def test_finished_run_says_all_that_others_rely_on(llm_train):
    ended = llm_train("moe=switch")
    assert ended.code == 0
    assert ended.folder.parent.as_posix() == "outputs/runs"
    told = facts(ended.folder)
    assert told["state"] == "finished"
    for key in (
        "val_loss val_bpb steps tokens seconds tokens_per_second params_total params_active "
        "flops_per_token config_hash code_hash data_fingerprint versions"
    ).split():
        assert told[key] is not None, key
    assert told["steps"] == 8
    assert told["tokens"] == 8 * 2 * 16
    assert (ended.folder / "curve.png").stat().st_size > 1000


def test_metrics_hold_no_clock_and_perf_does(trained):
    folder = trained().folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert not any("second" in name for row in rows for name in row)
    perf = [json.loads(line) for line in (folder / "perf.jsonl").read_text().splitlines()]
    assert all(row["perf/tokens_per_second"] > 0 for row in perf)


def test_the_same_command_answers_from_a_finished_run(llm_train, trained):
    first = trained()
    written = (first.folder / "metrics.jsonl").stat().st_mtime_ns
    again = llm_train()
    assert again.code == 0
    assert again.folder == first.folder
    assert "finished already" in again.out
    assert (first.folder / "metrics.jsonl").stat().st_mtime_ns == written


def test_what_cannot_change_a_result_does_not_make_another_run(llm_train, trained):
    first = trained()
    same = llm_train("train.checkpoint_every=5", "seed=0", "hardware.threads=1")
    assert same.folder == first.folder
    assert llm_train("seed=2").folder != first.folder


def test_other_text_is_another_run(llm_train, trained, toy_text):
    first = trained()
    toy_text.write_text(toy_text.read_text() + "one more word\n")
    assert llm_train().folder != first.folder


def test_a_loss_that_is_not_finite_ends_the_run_with_a_diagnosis(llm_train):
    ended = llm_train("optimizer.lr=1e30", "train.clip_norm=null", "optimizer.warmup=0")
    assert ended.code == 1
    line = ended.err.strip().splitlines()[-1]
    assert "step" in line
    assert "learning rate" in line
    assert "last good checkpoint" in line or "no checkpoint" in line
    (folder,) = Path("outputs/runs").glob("[a-z]*")
    assert facts(folder)["state"] == "failed"


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_a_signal_saves_and_the_same_command_ends_with_the_same_bytes(
    llm_train, trained, number, code
):
    overrides = ["train.budget=100steps", "train.eval_every=50", "model.dropout=0.1"]
    overrides += ["train.checkpoint_every=50"]
    process = train_in_a_fork(*overrides, err="err.txt")
    logs = list(Path("outputs").glob("runs/*/metrics.jsonl"))
    while not logs or logs[0].stat().st_size < 2000:
        assert process.is_alive(), Path("err.txt").read_text()
        time.sleep(0.01)
        logs = list(Path("outputs").glob("runs/*/metrics.jsonl"))
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    folder = logs[0].parent
    assert facts(folder)["state"] == "interrupted"
    stopped_at = len(logs[0].read_text().splitlines())
    assert stopped_at < 100
    told = f"saved at step {stopped_at}; the same command goes on from there"
    assert Path("err.txt").read_text().splitlines()[-1] == told
    assert llm_train(*overrides).folder == folder
    continued = logs[0].read_bytes()
    alone = trained(*overrides, "outputs=elsewhere").folder
    assert alone.name == folder.name
    assert (alone / "metrics.jsonl").read_bytes() == continued
    last = "checkpoints/step-00000100/model.safetensors"
    assert (alone / last).read_bytes() == (folder / last).read_bytes()


def test_a_second_writer_is_refused(tmp_path):
    run = directory.claim(tmp_path, "a", {}, FACTS, "resume", "refuse")
    assert directory.is_alive(tmp_path / "a")
    with pytest.raises(Refused, match="another process"):
        directory.claim(tmp_path, "a", {}, FACTS, "resume", "refuse")
    run.release()
    assert not directory.is_alive(tmp_path / "a")
    directory.claim(tmp_path, "a", {}, FACTS, "resume", "refuse").release()


def test_simultaneous_claims_have_one_runner_even_where_runners_are_killed(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as small:  # whose forks cost little
        assert small.apply(storm, (tmp_path / "one", 30))["answered"] == 29
        died = 0
        for seed in range(
            9
        ):  # who gets to train, and with that who dies, is the scheduler's choice
            told = small.apply(storm, (tmp_path / f"several-{seed}", 30, 3, 0.3, seed))
            assert told["trained"] == 3
            died += told["died"]
            if died:
                break
    assert died


@pytest.mark.slow
def test_a_thousand_claims_and_simultaneous_commands():
    told = subprocess.run(
        [sys.executable, claims.__file__, "--launches=4"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "1000 claims at once of 1 run(s): 1 directory, 1 trained" in told.stdout


def test_other_words_for_the_same_config_are_the_same_run(tmp_path):
    directory.claim(tmp_path, "tiny-dense-0a1b", {}, FACTS, "resume", "refuse").release()
    other = directory.claim(tmp_path, "nano-dense-0a1b", {}, FACTS, "resume", "refuse")
    assert other.folder == tmp_path / "tiny-dense-0a1b"
    assert directory.is_alive(tmp_path / "tiny-dense-0a1b")
    with pytest.raises(Refused, match="tiny-dense-0a1b is being trained"):
        directory.claim(tmp_path, "tiny-dense-0a1b", {}, FACTS, "resume", "refuse")
    other.release()


def test_a_dead_process_lets_its_claim_go(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from llm.runs.directory import claim;"
        f"claim(Path({str(tmp_path)!r}), 'a', {{}}, {FACTS!r}, 'resume', 'refuse');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert facts(tmp_path / "a")["state"] == "running"
    assert not directory.is_alive(tmp_path / "a")
    directory.claim(tmp_path, "a", {}, FACTS, "resume", "refuse").release()


def test_identity_does_not_depend_on_the_order_of_keys():
    one, other = {"a": 1, "b": {"c": 2.0, "d": None}}, {"b": {"d": None, "c": 2.0}, "a": 1}
    assert config_hash(one) == config_hash(other)
    assert run_id(["x"], one, "data") == run_id(["x"], other, "data")
    assert run_id(["x"], one, "data") != run_id(["x"], one, "other data")


@pytest.mark.parametrize(
    "moe",
    [
        ["moe=dense"],
        # Balance and noise look at one micro-step at a time; without them experts split, too.
        ["moe=switch", "moe.balance_loss=0", "moe.router.jitter=0"],
    ],
)
def test_accumulation_weighs_tokens_not_micro_steps(llm_train, moe):
    """4 rows at once and 4 × 1 row give the same curve."""
    at_once = llm_train("train.batch_size=4", "train.budget=12steps", *moe).folder
    split = llm_train(
        "train.batch_size=1", "train.grad_accum_steps=4", "train.budget=12steps", *moe
    ).folder
    read = [
        [json.loads(line)["train/loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (at_once, split)
    ]
    assert read[0] == pytest.approx(read[1], abs=1e-5)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("320tok", 10), ("7steps", 7), ("0.5epochs", None), ("1e7flops", None), ("0.01min", None)],
)
def test_every_budget_ends(llm_train, budget, steps):
    ended = llm_train(f"train.budget={budget}")
    assert ended.code == 0, ended.err
    told = facts(ended.folder)
    if steps is not None:
        assert told["steps"] == steps
    if budget == "0.5epochs":
        rows = (ended.folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])["data/epoch"] == pytest.approx(0.5, abs=0.02)
    if budget == "1e7flops":
        spent = told["tokens"] * told["flops_per_token"]
        assert 1e7 <= spent < 1e7 + 2 * 16 * told["flops_per_token"]
