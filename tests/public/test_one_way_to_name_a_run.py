"""Every command names runs alike: a directory, an id, or the only id with this ending.

`llm.runs rm /elsewhere/runs/ID` once deleted `outputs/runs/ID`, and `rm "" --yes` the only run.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import chat, evaluate_run, export, load_run
from llm.config.errors import Refused
from llm.report.__main__ import run as report
from llm.runs.__main__ import run as runs_command
from llm.runs.resolve import resolve
from tests.report.fake import fake_run

HASHES = st.text("0123456789abcdef", min_size=4, max_size=4)
IDS = st.builds("-".join, st.tuples(st.sampled_from(["nano-topk", "from_x"]), HASHES))
#: Two outputs folders that may have runs of one id.
PLACES = st.tuples(*[st.sets(IDS, max_size=4)] * 2)


@given(PLACES)
@settings(max_examples=20)
def test_a_name_means_one_run_or_is_refused(places):
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.chdir(temporary)
        for outputs, ids in zip(("outputs", "elsewhere"), places, strict=True):
            for name in ids:
                step = Path(outputs, "runs", name, "checkpoints", "step-00000001")
                step.mkdir(parents=True)
                (step / "checksums.json").touch()
                Path(outputs, "runs", name, "run.json").touch()
        for outputs, ids in zip(("outputs", "elsewhere"), places, strict=True):
            for name in ids:
                check(name, Path(outputs), ids)


def check(name: str, outputs: Path, ids: set[str]) -> None:
    """Each way to write the run `name` of `outputs`, which has runs of these ids."""
    folder = Path.cwd() / outputs / "runs" / name
    relative = f"{outputs}/runs/{name}"
    for path in (folder, relative, f"{relative}/", f"./{relative}", f"x/../{relative}"):
        assert resolve(path) == (folder, None)
    for part in ("best", "checkpoints", "checkpoints/step-00000001"):
        assert resolve(f"{relative}/{part}") == (folder, folder / part)
    assert resolve(name, outputs) == (folder, None)
    for length in range(1, len(name)):
        ending = name[-length:]
        others = [other for other in ids - {name} if other.endswith(ending)]
        if ending in ids:
            continue  # the whole id of another
        if others:
            with pytest.raises(Refused, match=f"is the name of {1 + len(others)} runs") as refusal:
                resolve(ending, outputs)
            assert all(other in str(refusal.value) for other in [name, *others])
        else:
            assert resolve(ending, outputs) == (folder, None)
    for wrong in (f"missing/{name}", f"{outputs}/{name}", f"{relative}/perf", f"{relative}x"):
        with pytest.raises(Refused, match="is no run directory"):
            resolve(wrong, outputs)


@pytest.fixture
def twins(workplace):
    """One run in two outputs folders, of which outputs/ is the one where ids are looked for."""
    folders = [fake_run(workplace / place / "runs") for place in ("outputs", "elsewhere")]
    assert folders[0].name == folders[1].name
    return folders


def test_only_the_run_at_the_path_is_deleted_tagged_and_compared(twins, capsys):
    here, there = twins
    runs_command(["tag", str(there), "kept"])
    assert (there / "tags.json").exists() and not (here / "tags.json").exists()
    (there / "metrics.jsonl").write_text('{"step": 1, "tokens": 125000, "val/loss": 9.0}\n')
    runs_command(["diff", str(here), str(there)])
    assert "9.0000" in capsys.readouterr().out
    runs_command(["rm", f"elsewhere/runs/{there.name}", str(there), "--yes"])
    assert here.exists() and not there.exists()


@pytest.mark.parametrize("name", ["", " ", ".", "elsewhere", "outputs/runs", "outputs/runs/gone"])
def test_nothing_is_deleted_by_a_name_of_nothing(twins, name):
    with pytest.raises(Refused):
        runs_command(["rm", name, "--yes"])
    assert all(folder.exists() for folder in twins)


def test_only_whole_runs_are_deleted(twins):
    here, there = twins
    (here / "best").mkdir()
    os.symlink(there, here.parent / "link-1234")
    Path("other").mkdir()
    Path("other/run.json").write_text("{}")
    for name, why in (
        (f"{here}/best", "names weights"),
        ("1234", "is a link"),
        ("./other", "by hand"),
    ):
        with pytest.raises(Refused, match=why):
            runs_command(["rm", name, "--yes"])
    assert here.exists() and there.exists() and Path("other").exists()


def test_an_unknown_name_comes_with_the_nearest(twins):
    name = twins[0].name
    changed = name[:-1] + ("0" if name[-1] != "0" else "1")
    for typed in (changed, name[-10:-2], f"outputs/runs/{name[-6:]}", changed[-10:]):
        with pytest.raises(Refused, match=f"did you mean {name}"):
            resolve(typed)


def test_an_id_here_and_one_in_outputs_are_told_apart(twins, monkeypatch):
    here, there = twins
    monkeypatch.chdir(there.parent)
    with pytest.raises(Refused, match="is the name of 2 runs"):
        resolve(here.name, here.parent.parent)
    monkeypatch.chdir(here.parent)
    assert resolve(here.name, here.parent.parent).folder == here


@pytest.mark.parametrize("name", ["", "gone", "elsewhere/gone"])
def test_all_commands_and_load_run_refuse_alike(twins, name, capsys):
    with pytest.raises(Refused) as refusal:
        resolve(name)
    line = str(refusal.value)
    with pytest.raises(Refused) as refusal:
        load_run(name)
    assert str(refusal.value) == line
    commands = (["diff", name, name], ["tag", name, "x"], ["rm", name], ["sync", name])
    calls = [*((runs_command, command) for command in commands), (report, [name])]
    for main, arguments in calls:
        with pytest.raises(Refused) as refusal:
            main(arguments)
        assert str(refusal.value) == line
    for main, arguments in (
        (chat.main, ["--checkpoint", name]),
        (chat.main, [name]),
        (evaluate_run.main, [name]),
        (export.main, [name, "--to", "x"]),
    ):
        assert main(arguments) == 2
        assert line in capsys.readouterr().err


def test_a_sweep_is_one_of_these_outputs(twins):
    folder = Path("outputs/sweeps/s")
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"jobs": [{"run": twins[0].name}]}))
    for name in ("", "elsewhere/sweeps/s"):
        with pytest.raises(Refused, match="is no sweep in outputs/sweeps"):
            runs_command(["dashboard", name])
