"""Ids, configs and runs made by the code of commit 671c780 go on meaning what they meant.

Nothing here is made anew when a test fails: a class that was renamed, or a new key whose default
means "as before", stands in the tables of `llm.runs.identity`.
"""

import json
import shutil
from pathlib import Path

import pytest

from llm import chat, evaluate_run, export, hf, load_run
from llm.report.collect import collect
from llm.runs.__main__ import run as runs
from llm.runs.arms import read_content, recorded
from llm.runs.chosen import chosen
from llm.runs.identity import RESULT_VERSION, canonical, identify
from llm.sweep.answer import Answers
from tests.golden.make import FP32, HERE, RUNS, TOY, leaves_of, resolve

GOLDEN = json.loads((HERE / "configs.json").read_text())
ANSWERS = Answers()  # what lines share is found out once
IDS = [folder.name for folder in sorted(HERE.glob("runs/*"))]


@pytest.mark.parametrize("golden", GOLDEN["lines"], ids=lambda golden: golden["line"] or "defaults")
def test_a_line_keeps_its_id_and_its_config(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    found = list(resolve(f"{golden['line']} outputs={tmp_path}", ANSWERS))
    config = {**found[0][2].config, "outputs": "outputs"}
    before = {k: v for k, v in GOLDEN["base"].items() if k not in golden["gone"]}
    before |= golden["config"]
    today = leaves_of(canonical(config))
    # Keys that are new and change the result show in the id.
    assert {key: today.get(key, "is gone") for key in before} == before
    assert [data for _, data, _ in found] == golden["data"]
    assert [name for name, _, _ in found] == golden["ids"]
    for name, _, job in found:
        assert recorded(job.config) == canonical(job.identity)
        told = {group: job.chosen[group] for group in ("data", "tokenizer")}  # by old runs
        inferred = chosen(name, {"chosen": told}, job.config)
        assert inferred == {group: job.chosen[group] for group in inferred}


def test_names_and_keys_of_the_tables_do_not_change_an_id(monkeypatch):
    """A class that moved, in any room and at any depth, and keys that came with it."""
    before = {"_target_": "llm.a.Old", "inner": [1, {"_target_": "llm.b.Inner", "x": None}]}
    today = {
        "_target_": "llm.a2.New",
        "inner": [1, {"_target_": "llm.b2.Inner", "x": None, "later": {"_target_": "llm.c.C"}}],
        "mask": False,
    }
    former = {"llm.a2.New": "llm.a.Old", "llm.b2.Inner": "llm.b.Inner"}
    as_before = {
        "llm.a.Old.mask": False,
        "llm.b.Inner.later": {"_target_": "llm.c.C"},
        "train.pace": "even",
        "top": 0,
    }
    monkeypatch.setattr("llm.runs.identity.FORMER_NAMES", former)
    monkeypatch.setattr("llm.runs.identity.AS_BEFORE", as_before)

    def name(model, **keys):
        chosen = {"model": "m", "moe": "e", "data": "d"}
        return identify(chosen, {"model": model, **keys}, FP32, "data")[0]

    old = name(before, train={"lr": 1.0})
    assert name(today, train={"lr": 1.0, "pace": "even"}, top=0) == old
    assert name({**today, "mask": True}, train={"lr": 1.0}) != old
    assert name(today, train={"lr": 1.0, "pace": "odd"}) != old
    assert name({**today, "_target_": "llm.a2.Other"}, train={"lr": 1.0}) != old


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The runs where a user has them, with their text and prepared data."""
    for name in ("runs", "data"):
        shutil.copytree(HERE / name, tmp_path / "outputs" / name)
    shutil.copy(HERE / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)


def test_a_run_opens_whose_classes_have_moved_since(outputs, monkeypatch):
    from llm.model import position

    moved = type("Rotary", (position.Rope,), {"__module__": position.__name__})
    monkeypatch.setattr(position, "Rotary", moved, raising=False)
    monkeypatch.delattr(position, "Rope")
    former = {"llm.model.position.Rotary": "llm.model.position.Rope"}
    monkeypatch.setattr("llm.runs.identity.FORMER_NAMES", former)
    for name in IDS:
        assert isinstance(load_run(f"outputs/runs/{name}").model.position, moved)
    (today, _), (other, _) = (collect([Path("outputs")]).results, collect([HERE]).results)
    assert today.recorded["model"]["position"]["_target_"] == "llm.model.position.Rope"
    assert today.recorded == other.recorded


def test_a_job_that_is_planned_is_of_the_arm_that_its_run_is_of(outputs):
    for overrides in RUNS:
        ((name, _, validated),) = resolve(" ".join([*TOY, *overrides]), ANSWERS)
        planned, _ = ANSWERS.content(validated, FP32)
        done, _ = read_content(Path("outputs/runs") / name)
        assert planned.pop("result_version") == RESULT_VERSION
        assert done.pop("result_version") == 1
        assert planned == done


@pytest.mark.parametrize("name", IDS)
def test_a_run_is_listed_talked_to_judged_and_exported(name, outputs, bf16_products, capsys):
    facts = load_run(f"outputs/runs/{name}").facts
    assert runs([f"moe={name.split('-')[1]}", "state=finished"]) in (0, None)
    assert name in capsys.readouterr().out
    assert chat.main(["--checkpoint", name, "--prompt", "a cat", "--max-tokens", "5"]) == 0
    capsys.readouterr()
    for flags, loss in (["--text", "text.txt"], None), ([], facts["best_val_loss"]):
        assert evaluate_run.main([name, *flags]) == 0
        told = float(capsys.readouterr().out.split()[1])
        assert told == pytest.approx(loss, abs=1e-4) if loss else told > 0
    assert export.main([name, "--to", "public"]) == 0
    weights = load_run(f"outputs/runs/{name}", "best").model.state_dict()
    assert all(t.equal(weights[key]) for key, t in hf.load("public").state_dict().items())
