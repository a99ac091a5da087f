"""What there is to choose from: the groups of `conf/`, their options, and the keys of these."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_PACKAGE = re.compile(r"^# @package (\S+)", re.MULTILINE)


def conf_folder() -> Path:
    """`conf/`: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


@dataclass(frozen=True)
class Option:
    """One YAML file of a group: where its keys land in the config, and what they are."""

    group: str
    name: str
    place: str  # dotted path of its node, "" for the top
    node: DictConfig

    def parent_of(self, path: str) -> DictConfig | None:
        """The mapping in this file that lists the dotted `path`, or None where none does."""
        inner = path.removeprefix(f"{self.place}.") if self.place else path
        if inner == path and self.place:
            return None
        *above, leaf = inner.split(".")
        node: Any = self.node
        for part in above:
            node = node.get(part) if isinstance(node, DictConfig) else None
        return node if isinstance(node, DictConfig) and leaf in node else None


class Choices:
    """The groups under one or more config folders, the first folder shadowing the later ones."""

    def __init__(self, *folders: Path):
        self.folders = folders or (conf_folder(),)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group (`model`, `model/position`) to its options, sorted."""
        found: dict[str, set[str]] = {}
        for folder in self.folders:
            for file in folder.rglob("*.yaml"):
                group = file.parent.relative_to(folder).as_posix()
                if group != ".":
                    found.setdefault(group, set()).add(file.stem)
        return {group: sorted(options) for group, options in sorted(found.items())}

    @cached_property
    def options(self) -> list[Option]:
        """Every option of every group, each file on its own, not composed with others."""
        return [self._load(group, name) for group, names in self.groups.items() for name in names]

    def _load(self, group: str, name: str) -> Option:
        file = next(
            f for folder in self.folders if (f := folder / group / f"{name}.yaml").is_file()
        )
        package = _PACKAGE.search(file.read_text(encoding="utf-8"))
        place = package[1] if package else group.replace("/", ".")
        loaded = OmegaConf.load(file)
        node = loaded if isinstance(loaded, DictConfig) else OmegaConf.create({})
        node.pop("defaults", None)
        return Option(group, name, "" if place == "_global_" else place, node)

    def lists(self, path: str) -> list[DictConfig]:
        """For each option whose YAML has the dotted `path`, the mapping that holds it."""
        parents = (option.parent_of(path) for option in self.options)
        return [parent for parent in parents if parent is not None]

    @cached_property
    def keys(self) -> list[str]:
        """Every dotted key that some option lists."""
        found = {key for option in self.options for key, _ in leaves(option.node, option.place)}
        return sorted(found)


def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf of a mapping; of `node` itself where it is none."""
    if not isinstance(node, dict | DictConfig):
        yield path, node
        return
    for key in node:
        if key != "_target_":
            yield from leaves(node[key], f"{path}.{key}" if path else str(key))
