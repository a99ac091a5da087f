"""A sweep's snapshot: made once, kept from edits, and exchanged only when somebody says so."""

import json
import shutil
from pathlib import Path

import pytest

import llm
from llm.config.choices import Choices, conf_folder
from llm.config.errors import Refused
from llm.runs.identity import code_hash
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
    assert code_hash(made / "llm") == code_hash()
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
