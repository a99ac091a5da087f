"""Whatever leans on private parts of Hydra, in one place: tests/config/test_hydra_private.py
holds it against the installed version. Nothing else imports from `hydra._internal`.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig

#: The launcher that runs the jobs in this very process, one after another.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
#: The sweepers whose jobs are known before the first begins.
GRID_SWEEPERS = (
    "hydra_plugins.llm_grid.GridSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)


def flags_parser() -> argparse.ArgumentParser:
    """The parser of Hydra's flags: it is private, the flags are not."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


@contextmanager
def set_aside() -> Iterator[None]:
    """No Hydra is at work within; the one that was goes on behind."""
    outer = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        restore_gh_from_backup(outer)


def apply_overrides(overrides: Sequence[Override], config: DictConfig) -> None:
    """Change a composed config in place by overrides of values, as Hydra does while composing."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)


def run(task: Callable[[DictConfig], Any], config_path: str, config_name: str) -> None:
    """Hydra with the flags and overrides in `sys.argv`, its exceptions coming through."""
    from hydra._internal.hydra import Hydra

    decorate = hydra.main(version_base="1.3", config_path=config_path, config_name=config_name)
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # It composes everything once more (0.4 s) only to find hydra.mode, which the flags say.
    get_mode, Hydra.get_mode = Hydra.get_mode, lambda *_, **__: None  # type: ignore[method-assign]
    try:
        decorate(task)()
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]
        os.environ["HYDRA_FULL_ERROR"] = before
