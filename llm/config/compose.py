"""Many configs at the price of a few.

Hydra composes a config in 110 ms, nearly all of it for the choice of files. Here it does so once
for each set of options. What it does then, applying the values of a line to what the files say, it
does anew for each job, on a copy: 4 ms.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from llm.config.choices import Choices
from llm.config.hydra_private import apply_overrides, set_aside


class Composer:
    """Composes the jobs of one line.

    Args:
        choices: the folders of options
        hydra_overrides: of Hydra's own keys, in every job
    """

    def __init__(self, choices: Choices, hydra_overrides: list[str]):
        self.choices, self.hydra_overrides = choices, hydra_overrides
        self._of_options: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let Hydra read the folders, within a Hydra that is at work or not; then `job` works."""
        folder = str(self.choices.conf)
        with set_aside(), initialize_config_dir(folder, version_base="1.3", job_name="sweep"):
            yield

    def job(self, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The plain config of these overrides, as Hydra takes them, and the options in it.

        Raises Hydra's and OmegaConf's errors.
        """
        options = tuple(text for text in overrides if not _sets_value(text))
        if options not in self._of_options:
            config = self._composed(options)
            choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
            with open_dict(config):
                del config["hydra"]
            self._of_options[options] = config, choices
        composed, chosen = self._of_options[options]
        config = composed.copy()
        values = [_parsed(text) for text in overrides if _sets_value(text)]
        apply_overrides(values, config)
        return plain(config), chosen

    def hydra(self, overrides: Sequence[str]) -> DictConfig:
        """Hydra's own node: launcher, sweeper and folder of a sweep."""
        config = self._composed(overrides)
        node: DictConfig = config.hydra
        with open_dict(config):  # while `outputs` is its sibling
            node.sweep.dir = str(node.sweep.dir)
            OmegaConf.resolve(node.sweeper)
        return node

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        given = [*overrides, *self.hydra_overrides]
        return compose(self.choices.top, given, return_hydra_config=True)


@cache
def _parsed(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def _sets_value(text: str) -> bool:
    """Whether it sets or deletes a value (`llm.config.overrides` writes no other way), or chooses
    an option."""
    return text.startswith(("++", "~"))


def plain(config: DictConfig) -> dict[str, Any]:
    """As dicts and lists, references resolved; raises OmegaConf's errors."""
    container: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return container
