"""Under SLURM a stopped job asks for another turn, unless somebody cancelled it."""

import signal

import pytest

from llm.hardware.slurm import requeue


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A fake scontrol on PATH that notes what it is asked; returns the note and the answer."""
    note, answer = tmp_path / "asked", tmp_path / "answer"
    answer.write_text("JobId=7 JobState=RUNNING\n")
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {note}\n[ "$1" = show ] && cat {answer}\nexit 0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return note, answer


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_preemption_requeues(scontrol, number):
    assert "again" in requeue(number)
    assert scontrol[0].read_text().splitlines()[-1] == "requeue 7"


def test_a_cancelled_job_stays_cancelled(scontrol):
    note, answer = scontrol
    answer.write_text("JobId=7 JobState=CANCELLED\n")
    assert requeue(signal.SIGTERM) is None
    assert "requeue" not in note.read_text()


def test_ctrl_c_and_life_without_slurm_ask_nothing(scontrol, monkeypatch):
    assert requeue(signal.SIGINT) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue(signal.SIGTERM) is None
    assert not scontrol[0].exists()


def test_a_missing_scontrol_is_told(scontrol, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "could not" in requeue(signal.SIGUSR1)
