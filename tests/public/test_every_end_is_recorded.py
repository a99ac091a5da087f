"""Whatever ends training, run.json says it, and the same command goes on."""

import json
import os
import signal
from pathlib import Path

import pytest

from llm.config.errors import Refused

SHORT = ["train.budget=3steps", "train.eval_every=2", "moe=dense"]


def stop_here():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("place", "problem", "code", "state", "reason"),
    [
        ("llm.training.trainer.preflight", Refused("no gradient"), 2, "failed", "no gradient"),
        ("llm.training.trainer.account_for", KeyboardInterrupt(), 130, "interrupted", "signal 2"),
        ("llm.tracking.none.NoTracking.start", Refused("no account"), 2, "failed", "no account"),
        ("llm.data.feed.Feed.take", SystemExit(3), 3, "failed", "3"),
        ("llm.evaluate.examine", OSError(28, "No space left"), 1, "failed", "No space left"),
        ("llm.report.card.sample_texts", KeyboardInterrupt(), 130, "interrupted", "signal 2"),
        ("llm.evaluate.acceptance", stop_here, 143, "interrupted", "signal 15"),
        ("llm.report.card.card", KeyboardInterrupt(), 130, "finished", ""),
    ],
)
def test_whatever_comes_wherever(llm_train, monkeypatch, place, problem, code, state, reason):
    def ends(*arguments, **named):
        if callable(problem):
            return problem()
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(place, ends)
        ended = llm_train(*SHORT)
    assert ended.code == code, ended.err
    (folder,) = Path("outputs/runs").glob("[!.]*")
    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == state
    assert reason in (facts.get("reason") or "")
    if state == "interrupted":
        assert "the same command" in ended.err.splitlines()[-1]
    assert llm_train(*SHORT).code == 0
    facts = json.loads((folder / "run.json").read_text())
    assert facts["state"] == "finished" and facts["reason"] is None
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
