"""`llm.runs`: list, filter, compare, tag, delete."""

import json

import pytest

from llm.config.errors import Failed, Refused
from llm.runs import directory
from llm.runs.__main__ import run
from llm.runs.conditions import Condition
from llm.runs.listing import find
from tests.report.fake import fake_run


@pytest.fixture
def outputs(workplace):
    runs = workplace / "outputs" / "runs"
    fake_run(runs, loss=1.0)
    fake_run(runs, loss=0.9, moe="switch", n_experts=8)
    fake_run(runs, seed=2, state="failed", reason="nan")
    fake_run(runs, seed=3, state="running")
    return runs


def ids(capsys, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert run(list(arguments)) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_conditions_look_at_options_results_config_and_state(outputs, capsys):
    every = {r.id: r for r in find(outputs.parent)}
    assert len(ids(capsys)) == 4
    (sparse,) = ids(capsys, "moe=switch")
    assert every[sparse].values["moe.n_experts"] == 8
    assert ids(capsys, "n_experts=8") == ids(capsys, "moe.n_experts>=8") == [sparse]
    assert ids(capsys, "val_loss<0.95") == [sparse]
    assert len(ids(capsys, "state=finished")) == 2
    assert len(ids(capsys, "state=killed")) == 1  # says running, and nobody holds it
    assert len(ids(capsys, "optimizer.lr=1e-3", "state!=failed")) == 3
    assert ids(capsys, "state=finished", "--sort=val_loss")[0] == sparse
    assert ids(capsys, "state=finished", "--sort=-val_loss")[-1] == sparse
    with pytest.raises(Refused, match="is no condition"):
        Condition.parse("moe", [])


def test_tags_are_added_and_taken_away(outputs, capsys):
    name = ids(capsys, "moe=switch")[0]
    run(["tag", name, "paper", "good"])
    run(["tag", name[-10:], "-good"])
    assert ids(capsys, "tag=paper") == [name]
    assert ids(capsys, "tag=good") == []


def test_a_comparison_says_what_differs_and_how_the_curves_do(outputs, capsys):
    one, other = (ids(capsys, f"moe={moe}", "state=finished")[0] for moe in ("dense", "switch"))
    capsys.readouterr()
    run(["diff", one, other])
    told = capsys.readouterr().out
    assert "moe.n_experts" in told and "llm.moe.layer.MoE" in told
    assert "optimizer.lr" not in told
    assert "-0.1000" in told
    run(["diff", one, one])
    assert "nothing differs" in capsys.readouterr().out


def test_nothing_is_deleted_by_accident(outputs, capsys, monkeypatch):
    name = ids(capsys, "moe=switch")[0]
    with pytest.raises(Refused, match="--yes"):
        run(["rm", name])
    held = directory.claim(outputs, name, {}, {"code_hash": "c"}, "resume", "accept")
    with pytest.raises(Refused, match="being trained"):
        run(["rm", name, "--yes"])
    held.release()
    run(["rm", name, "--yes"])
    assert not (outputs / name).exists() and len(find(outputs.parent)) == 3


def test_sync_replays_the_log_through_the_mirror(outputs, monkeypatch, capsys):
    """The mirror itself is tested in tests/tracking; here, what it is told."""
    calls: list[tuple] = []

    class Fake:
        def __init__(self, **options):
            calls.append((options["mode"], options["tags"]))

        def send(self, run_id, folder, config, group, exit_code, flops, say):
            calls.append((run_id, config["seed"], exit_code, flops))
            return exit_code == 0

    monkeypatch.setattr("llm.runs.sync.Wandb", Fake)
    name = ids(capsys, "moe=switch")[0]
    assert run(["sync", name, "--offline"]) == 0
    file = outputs / name / "run.json"
    facts = json.loads(file.read_text())
    flops = facts["flops_per_token"]
    assert calls == [("offline", []), (name, 1, 0, flops)]
    # Nobody trains it any more, but it says so: it was killed, and has no exit code.
    file.write_text(json.dumps({**facts, "state": "running"}))
    with pytest.raises(Failed, match="1 of 1 runs were not sent"):
        run(["sync", name])
    assert calls[3] == (name, 1, None, flops)
    file.write_text(json.dumps(facts))
