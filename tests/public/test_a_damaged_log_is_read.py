"""A damaged line in a run's log costs what the line said, and no command its answer.

It was a traceback in `llm.chat` and `llm.export`, and left the run out of reports.
"""

import json
import shutil
from pathlib import Path

import pytest

from llm import chat, evaluate_run, export, load_run
from llm.report.collect import collect
from llm.runs.__main__ import run as runs_command
from llm.runs.dashboard import _names
from llm.runs.listing import Listed, curve
from llm.sweep.prune import _Log
from llm.tracking.log import MetricLog
from llm.tracking.points import Points

GOLDEN = Path(__file__).parent.parent / "golden"
#: Not UTF-8, half a row, JSON that is no row, a row whose names are spoilt.
DAMAGE = [b'{"step": 10, "val/loss": \xff}', b'{"step": 20, "tokens": 2560, "val/lo', b"[1, 2]"]
DAMAGE += [b"\0" * 50, b'{"stop": 20, "tokens": 2560, "val/loss": 1.5, "val/bpb": 1.5}']


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with each kind of damage behind each line of its logs, and a torn last line."""
    monkeypatch.chdir(tmp_path)
    name = next(GOLDEN.glob("runs/nano-dense-*")).name
    folder = shutil.copytree(GOLDEN / "runs" / name, tmp_path / "outputs/runs" / name)
    for log in ("metrics.jsonl", "perf.jsonl"):
        lines = (folder / log).read_bytes().splitlines()
        spoilt = b"\n".join(part for line in lines for part in [line, *DAMAGE])
        (folder / log).write_bytes(spoilt + b'\n{"step": 21, "tok')
    return folder


def test_every_row_that_is_whole_is_read_and_the_rest_told_once(run, capsys):
    whole = GOLDEN / "runs" / run.name
    for log in ("metrics.jsonl", "perf.jsonl"):
        assert MetricLog.read(run / log) == MetricLog.read(whole / log)
        assert MetricLog.read(run / log, b"val/loss") == MetricLog.read(whole / log, b"val/loss")
        said = capsys.readouterr().err
        assert said == f"{run / log}: passing over 100 damaged lines\n"
    assert curve(Listed.at(run)) == curve(Listed.at(whole))
    assert _names(Listed.at(run)) == _names(Listed.at(whole))
    (mine,), (theirs,) = (collect([folder]).results for folder in (run, whole))
    assert (mine.points, mine.last) == (theirs.points, theirs.last)
    logs = [_Log(folder) for folder in (run, whole)]
    for log in logs:
        log.read_on()
    assert logs[0].curve == logs[1].curve
    rows = [
        list(Points(folder, folder / "samples.jsonl", None, print).ready(complete=True))
        for folder in (run, whole)
    ]
    assert rows[0] == rows[1]


def test_every_command_answers(run, capsys):
    text = run.parent.parent / "a.txt"
    text.write_text("a cat sat on the mat")
    for main, arguments in (
        (chat.main, [run.name, "--prompt", "a cat", "--max-tokens", "3"]),
        (evaluate_run.main, [run.name, "--text", str(text)]),
        (export.main, [run.name, "--to", "public"]),
    ):
        assert main(arguments) == 0
    assert "validation loss" in Path("public/README.md").read_text()
    runs_command([])
    runs_command(["diff", run.name, run.name])
    assert "Traceback" not in capsys.readouterr().err


def test_a_torn_last_line_is_not_worth_a_word(run, capsys):
    shutil.copy(GOLDEN / "runs" / run.name / "metrics.jsonl", run / "metrics.jsonl")
    with (run / "metrics.jsonl").open("ab") as log:
        log.write(b'{"step": 21, "tok')
    assert load_run(run).metrics[-1]["step"] == 20
    assert capsys.readouterr().err == ""


def test_weights_whose_loss_was_no_number_are_talked_to(run, monkeypatch, capsys):
    row = {"step": 20, "tokens": 2560, "val/loss": None, "val/bpb": None}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("sys.stdin", (run / "metrics.jsonl").open())
    assert chat.main([run.name, "--max-tokens", "1"]) == 0
    assert export.main([run.name, "--to", "public"]) == 0
    assert "validation loss" not in capsys.readouterr().err
