"""The private parts of Hydra that we lean on are there, and nobody else reaches for them."""

import os
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class

import llm
from llm.config import hydra_private
from llm.config.choices import conf_folder

PRIVATE = re.compile(r"hydra\._internal|get_gh_backup|restore_gh|ConfigLoaderImpl|Hydra\.get_mode")


def test_one_file_alone_knows_private_names():
    package = Path(llm.__file__).parent
    files = [*package.rglob("*.py"), *(package.parent / "hydra_plugins").glob("*.py")]
    found = {f.name for f in files if PRIVATE.search(f.read_text(encoding="utf-8"))}
    assert found == {"hydra_private.py"}


def test_names_lead_to_classes():
    for name in (hydra_private.BASIC_LAUNCHER, *hydra_private.GRID_SWEEPERS):
        assert get_class(name)


def test_flags_are_hydras():
    flags = hydra_private.flags_parser().parse_args(["--cfg", "job", "-m", "a=1"])
    assert (flags.cfg, flags.multirun, flags.overrides) == ("job", True, ["a=1"])


def test_overrides_are_applied_as_while_composing():
    given = [
        "seed=7",
        "+optimizer.lr_factors.head=0.5",
        "~train.z_loss",
        "model.window=[3,null]",
    ]
    with hydra_private.set_aside(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", [])
        hydra_private.apply_overrides(OverridesParser.create().parse_overrides(given), config)
        assert config == compose("train", given)


def test_a_hydra_at_work_goes_on_behind():
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        with hydra_private.set_aside():
            assert not GlobalHydra.instance().is_initialized()
        assert compose("train", ["seed=3"]).seed == 3


def test_exceptions_come_through_and_the_environment_is_as_before(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "seed=5"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def task(config):
        raise KeyError(config.seed)

    with hydra_private.set_aside(), pytest.raises(KeyError, match="5"):
        hydra_private.run(task, str(conf_folder()), "train")
    assert os.environ["HYDRA_FULL_ERROR"] == "0"
