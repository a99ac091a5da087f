"""A sweep's snapshot: made once, kept from edits, and exchanged only when somebody says so."""

import json
import shutil
from pathlib import Path

import pytest

import llm
from llm.config.choices import Choices, conf_folder
from llm.config.errors import Refused
from llm.runs import code
from llm.runs.code import code_facts, packages
from llm.sweep.snapshot import freeze


@pytest.fixture
def edited(tmp_path):
    """A choice of configs that can be edited, and the sweep's folder."""
    conf = tmp_path / "conf"
    shutil.copytree(conf_folder(), conf)
    return Choices(conf), tmp_path / "sweep"


def test_a_snapshot_has_the_code_and_the_configs(edited):
    choices, sweep = edited
    made = freeze(sweep, choices, [], "refuse", "resume")
    assert code_facts(made / "llm") == code_facts(*packages())
    nano = "model/nano.yaml"
    assert (made / "conf" / nano).read_bytes() == (choices.conf / nano).read_bytes()
    plugins = {file.name for file in (made / "hydra_plugins").iterdir()}
    assert plugins == {"llm_local.py", "llm_grid.py"}
    assert not list(made.rglob("__pycache__"))
    assert freeze(sweep, choices, [], "refuse", "resume") == made


def test_an_edit_is_noticed_and_has_three_answers(edited):
    choices, sweep = edited
    first = freeze(sweep, choices, [], "refuse", "resume")
    (sweep / "jobs").mkdir()  # it has begun
    nano = choices.conf / "model" / "nano.yaml"
    before = nano.read_text()
    nano.write_text(before + "\n# another word\n")
    with pytest.raises(Refused, match=r"conf/model/nano\.yaml.*frozen.*accept.*restart"):
        freeze(sweep, choices, [], "refuse", "resume")
    assert freeze(sweep, choices, [], "frozen", "resume") == first
    second = freeze(sweep, choices, [], "accept", "resume")
    assert second != first
    assert (first / "conf" / "model" / "nano.yaml").read_text() == before
    assert freeze(sweep, choices, [], "refuse", "resume") == second


def test_of_the_code_only_what_can_change_a_result_needs_an_answer(edited, tmp_path, monkeypatch):
    choices, sweep = edited
    copied = tmp_path / "copied" / "llm"
    shutil.copytree(code._PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "_PACKAGE", copied)
    first = freeze(sweep, choices, [], "refuse", "resume")
    (sweep / "jobs").mkdir()  # it has begun
    for name, line in [("chat.py", "x = 1"), ("plan/cost.py", "x = 1"), ("build.py", "# a word")]:
        with (copied / name).open("a") as file:
            file.write(f"\n{line}\n")
    code_facts.cache_clear()
    second = freeze(sweep, choices, [], "refuse", "resume")
    assert second != first and (second / "llm/chat.py").read_text().endswith("x = 1\n")
    with (copied / "build.py").open("a") as file:
        file.write("x = 1\n")
    with (copied / "chat.py").open("a") as file:
        file.write("x = 2\n")
    code_facts.cache_clear()
    with pytest.raises(Refused, match=r"began with other files \(llm/build\.py\)"):
        freeze(sweep, choices, [], "refuse", "resume")


def test_what_was_edited_before_the_first_job_needs_no_answer(edited):
    choices, sweep = edited
    first = freeze(sweep, choices, [], "refuse", "resume")
    (choices.conf / "model" / "nano.yaml").write_text("# gone\n")
    assert freeze(sweep, choices, [], "refuse", "resume") != first


def test_packages_of_plugins_are_frozen_too(edited, tmp_path, monkeypatch):
    choices, sweep = edited
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = freeze(sweep, choices, ["my_package"], "refuse", "resume")
    assert (made / "my_package" / "__init__.py").read_text() == "x = 1\n"


def test_the_snapshot_says_what_it_is_from(edited):
    choices, sweep = edited
    told = json.loads(
        (freeze(sweep, choices, [], "refuse", "resume") / "snapshot.json").read_text()
    )
    assert "llm/train.py" in told["files"] and "conf/train.yaml" in told["files"]
    assert told["git"].keys() <= {"git_commit", "git_diff_hash"}
    assert (Path(llm.__file__).parent / "train.py").exists()
