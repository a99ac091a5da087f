"""Reports tell runs apart by the whole difference of what made them, not by the last part of a key.

`moe=dense train.z_loss=0,1 seed=1,2` was one arm of two runs; with `moe=dense,topk` top-k at
z_loss=1 was compared with dense at z_loss=0, and the difference called resolved.
"""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.report.__main__ import run as report
from llm.report.collect import collect
from llm.report.leaderboard import standings
from llm.runs.arms import Entry, arms
from llm.runs.fairness import warnings
from llm.runs.labels import flat, labels
from tests.report.fake import fake_run

#: Keys that share last parts, at several depths; values that look alike.
KEYS = ["train.z_loss", "moe.z_loss", "moe.router.z_loss", "moe._target_", "moe.router._target_"]
KEYS += ["data_fingerprint", "init_from", "result_version", "optimizer.lr", "data.parts.a.weight"]
VALUES = st.sampled_from(
    [None, 0, 1, 1.0, "1", "a.b.C", "x.C", True, [1], "0123456789", "012345678"]
)
OPTIONS = st.fixed_dictionaries({}, optional={"moe": st.sampled_from("ab"), "data": st.just("d")})


@given(st.lists(st.tuples(st.dictionaries(st.sampled_from(KEYS), VALUES), OPTIONS), max_size=8))
def test_arms_are_the_classes_of_equal_content_and_each_has_a_label(drawn):
    rows = [flat(row) for row, _ in drawn]
    entries = [
        Entry({**row, "seed": seed}, chosen=options)
        for seed, (row, (_, options)) in enumerate(zip(rows, drawn, strict=True))
    ]
    found = arms(entries)
    assert sum(len(arm.entries) for arm in found) == len(entries)
    kinds = {json.dumps(row, sort_keys=True) for row in rows}
    assert len(found) == len(kinds) == len({arm.label for arm in found})
    for arm in found:
        rest = [{k: v for k, v in e.content.items() if k != "seed"} for e in arm.entries]
        assert len({json.dumps(row, sort_keys=True) for row in rest}) == 1


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), st.integers(0, 3)), max_size=8))
def test_labels_tell_different_contents_apart(rows):
    named = labels(rows, [{}] * len(rows))
    by_label: dict[str, set[str]] = {}
    for row, label in zip(rows, named, strict=True):
        by_label.setdefault(label, set()).add(json.dumps(row, sort_keys=True))
    assert all(len(kinds) == 1 for kinds in by_label.values())


def sweep_of(folder: Path, **swept: list) -> Path:
    """A sweep of fake runs over `moe` and `train.beta`, `moe.beta`, … as `train__beta=[0, 1]`."""
    lines = []
    for number, values in enumerate(itertools.product(*swept.values())):
        job = dict(zip(swept, values, strict=True))
        overrides = [f"{key.replace('__', '.')}={value}" for key, value in job.items()]
        nested: dict[str, dict] = {}
        for key in [key for key in job if "__" in key]:
            room, leaf = key.split("__")
            nested.setdefault(room, {})[leaf] = job.pop(key)
        name = fake_run(folder / "runs", beside=nested, **job).name
        lines.append({"job": number, "overrides": overrides, "exit": 0, "problem": "", "run": name})
    sweep = folder / "sweeps" / "s"
    sweep.mkdir(parents=True)
    (sweep / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return sweep


def test_a_key_of_one_room_and_one_of_another_make_four_arms(tmp_path):
    sweep = sweep_of(tmp_path, seed=[1, 2], train__beta=[0, 1], model__beta=[0, 1])
    rows = standings(collect([sweep]).results)
    assert {row.label for row in rows} == {
        f"model.beta={b} train.beta={a}" for a in (0, 1) for b in (0, 1)
    }
    assert [row.loss.n for row in rows] == [2] * 4


@pytest.mark.parametrize("listed", ["as a sweep", "as a folder"])
def test_like_is_compared_with_like(tmp_path, listed):
    sweep = sweep_of(tmp_path, moe=["dense", "switch"], train__z_loss=[0, 1], seed=[1, 2])
    found = collect([sweep if listed == "as a sweep" else tmp_path / "runs"])
    against = {row.label: row.against for row in standings(found.results)}
    assert against.keys() == {
        f"moe={moe} z_loss={z}" for moe in ("dense", "switch") for z in (0, 1)
    }
    for z in (0, 1):
        assert against[f"moe=switch z_loss={z}"] == f"moe=dense z_loss={z}"


def test_a_mask_of_documents_is_part_of_the_content(tmp_path):
    """It is a key of `data` that no corpus's class has."""
    for mask in (False, True):
        fake_run(tmp_path, beside={"data": {"document_mask": mask}})
    labels = {result.label for result in collect([tmp_path]).results}
    assert labels == {"document_mask=false", "document_mask=true"}


def test_runs_of_code_that_counts_otherwise_are_neither_pooled_nor_compared(tmp_path):
    for version in (1, 2):
        for moe in ("dense", "switch"):
            fake_run(tmp_path, seed=version, moe=moe, told={"result_version": version})
    found = collect([tmp_path])
    rows = standings(found.results)
    assert len(rows) == 4
    version = {r.label: r.facts["result_version"] for r in found.results}
    assert all(version[row.label] == version[row.against] for row in rows if row.against)
    assert "result_version 1 and 2" in "".join(warnings([r.entry for r in found.results], []))


def test_one_run_in_two_folders_is_counted_once_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: None)
    for place in ("a", "b"):
        fake_run(tmp_path / place / "runs")
        fake_run(tmp_path / place / "runs", moe="switch", lr=(place == "a") + 1e-3)
    found = collect([tmp_path / "a", tmp_path / "b"])
    assert len(found.results) == 4 and len(found.repeats) == 1
    assert sorted(row.loss.n for row in standings(found.results)) == [1, 1, 1]
    report([str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path / 'page'}"])
    assert "is counted in" in (tmp_path / "page/index.html").read_text()
