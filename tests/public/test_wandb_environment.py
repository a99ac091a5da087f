"""W&B's own variables count where nothing was typed, and are named where they lose."""

import pytest

from llm.config.errors import Refused
from llm.tracking.wandb_mirror import Wandb


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (
        "MODE",
        "DISABLED",
        "PROJECT",
        "ENTITY",
        "TAGS",
        "NAME",
        "RUN_ID",
        "DIR",
        "RESUME",
    ):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def test_without_any_it_is_offline():
    made = Wandb()
    assert (made.mode, made.project, made.entity, made.tags) == (
        "offline",
        "my-simple-llm",
        None,
        [],
    )


def test_they_fill_what_was_not_typed(monkeypatch):
    for name, value in {"MODE": "online", "PROJECT": "p", "ENTITY": "e", "TAGS": "a,b"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    made = Wandb()
    assert (made.mode, made.project, made.entity, made.tags) == ("online", "p", "e", ["a", "b"])


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("MODE", "dryrun", "offline"),
        ("MODE", "run", "online"),
        ("MODE", "disabled", "disabled"),
        ("DISABLED", "true", "disabled"),
        ("DISABLED", "false", "offline"),
    ],
)
def test_every_spelling_of_the_mode(monkeypatch, name, value, mode):
    monkeypatch.setenv(f"WANDB_{name}", value)
    assert Wandb().mode == mode


def test_disabled_starts_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    tracker = Wandb()
    tracker.start("run", tmp_path, {}, None, 0, say=said.append)
    tracker.finish(0)
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_what_loses_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(Wandb, "_spawn", lambda *arguments: None)
    for name, value in {"MODE": "offline", "PROJECT": "theirs", "NAME": "mine"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    said: list[str] = []
    Wandb(mode="offline", project="ours").start("run", tmp_path, {}, None, 0, say=said.append)
    (line,) = said
    assert line.startswith("W&B: WANDB_PROJECT, WANDB_NAME not used: ")


def test_a_mode_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(Refused, match="WANDB_MODE=onlin: must be online, offline or disabled"):
        Wandb()
