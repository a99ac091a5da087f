"""The closing minute of a run can be interrupted, and what is printed then can be typed."""

import io
import json
import os
import shlex
from pathlib import Path

from llm import chat
from llm.report.card import command_for


def test_ctrl_c_after_the_last_step_and_the_same_command_again(llm_train, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    here = "outputs=out puts"
    with monkeypatch.context() as patch:
        patch.setattr("llm.report.card.sample_texts", interrupt)
        ended = llm_train(here)
    assert ended.code == 130
    lines = ended.err.splitlines()
    assert lines[-1] == "saved at step 8; the same command goes on from there"
    assert lines[-2] == "writing samples"
    (file,) = Path("out puts/runs").glob("*/run.json")
    assert json.loads(file.read_text())["state"] == "interrupted"

    ended = llm_train(here)
    assert ended.code == 0
    (told,) = [line for line in ended.out.splitlines() if line.startswith("talk to it")]
    words = shlex.split(told.removeprefix("talk to it"))
    assert words[1:3] == ["-m", "llm.chat"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chat.main(words[3:]) == 0


def test_a_run_that_does_not_stay_the_newest_is_named(workplace):
    runs = Path("outputs/runs")
    for number, name in enumerate(("old", "new")):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text('{"state": "finished"}')
        os.utime(runs / name / "run.json", (number, number))
    assert command_for(runs / "new", {"sweep": None}).endswith("-m llm.chat")
    assert command_for(runs / "old", {"sweep": None}).endswith("-m llm.chat outputs/runs/old")
    assert command_for(runs / "new", {"sweep": "s"}).endswith("-m llm.chat outputs/runs/new")
