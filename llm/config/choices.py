"""What there is to choose from: the groups of `conf/`, their options, and the keys of these."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from llm.config.errors import Refused

#: libyaml's parser where there is one: ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGE = re.compile(r"^# @package (\S+)", re.MULTILINE)


def conf_folder() -> Path:
    """`conf/`: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


@dataclass(frozen=True)
class Option:
    """One YAML file of a group: where its keys land in the config, and what they are.

    A file whose name begins with `_` is no option, but what others of its group share: they name
    it in their defaults, and its keys are theirs.
    """

    group: str
    name: str
    file: Path
    place: str  # dotted path of its node, "" for the top
    node: dict[str, Any]
    inner: dict[str, str]  # places where its defaults list puts options of its own group
    shared: tuple["Option", ...] = ()  # files whose keys `node` holds beside its own

    def mapping_at(self, path: str) -> dict[str, Any] | None:
        """The mapping that this file puts at the dotted `path`, None where it puts none."""
        if path == self.place:
            return self.node
        if self.place and not path.startswith(f"{self.place}."):
            return None
        found: Any = self.node
        for part in path[len(self.place) :].removeprefix(".").split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None

    def file_of(self, path: str, leaf: str) -> Path:
        """The file that says `leaf` in the mapping at `path`: its own, or one that it shares."""
        own = Option(self.group, self.name, self.file, self.place, read_yaml(self.file), {})
        if leaf in (own.mapping_at(path) or {}):
            return self.file
        holders = (other.file for other in self.shared if leaf in (other.mapping_at(path) or {}))
        return next(holders, self.file)


class Choices:
    """The groups under `conf/` and under folders of the user's own.

    Args:
        conf: the folder of the top config
        others: more folders, for options that `conf` lacks. Hydra would pass over a file of
            theirs that `conf` has, too, without a word; here it is refused.
        top: name of the top config
    """

    def __init__(self, conf: Path | None = None, others: Iterable[Path] = (), top: str = "train"):
        self.conf = conf or conf_folder()
        self.others = [folder for folder in others if folder.resolve() != self.conf.resolve()]
        self.top = top

    @cached_property
    def files(self) -> dict[tuple[str, str], Path]:
        """Group and option to its file; the group of a top config is ""."""
        found: dict[tuple[str, str], Path] = {}
        for folder in (self.conf, *self.others):
            for file in sorted(folder.rglob("*.yaml")):
                group = file.parent.relative_to(folder).as_posix().removeprefix(".")
                if (group, file.stem) in found:
                    taken = f"{group}={file.stem}" if group else file.name
                    first = found[group, file.stem]
                    raise Refused(f"{file}: {first} is {taken} already; give yours another name")
                found[group, file.stem] = file
        return found

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group (`model`, `model/position`) to its options, sorted."""
        found: dict[str, list[str]] = {}
        for group, name in sorted(self.files):
            if group and not name.startswith("_"):
                found.setdefault(group, []).append(name)
        return found

    @cached_property
    def options(self) -> list[Option]:
        """Every option of every group, each file on its own, not composed with others."""
        names = [(group, name) for group, options in self.groups.items() for name in options]
        return [self._load(group, name) for group, name in names]

    def option(self, group: str, name: str) -> Option:
        """One option of a group."""
        return self._load(group, name)

    def _load(self, group: str, name: str) -> Option:
        file = self.files[group, name]
        package = _PACKAGE.search(file.read_text(encoding="utf-8", errors="replace"))
        place = package[1] if package else group.replace("/", ".")
        node = read_yaml(file)
        node.pop("hydra", None)  # a study's
        listed = node.pop("defaults", None) or []
        names = [e for e in listed if isinstance(e, str) and e[0] == "_" and e != "_self_"]
        shared = tuple(self._load(group, e) for e in names if (group, e) in self.files)
        for other in shared:
            node = _over(other.node, node)
        place = "" if place == "_global_" else place
        return Option(group, name, file, place, node, _inner(listed, place), shared)

    def part(self, place: str) -> str | None:
        """The group of which any option may stand at the dotted `place`, beside its own place.

        Some option's defaults list has one there, under another name: `data.parts.NAME.corpus`.
        """
        for option in self.options:
            for other in option.inner:
                mine, theirs = place.split("."), other.split(".")
                if [*mine[:-2], *mine[-1:]] == [*theirs[:-2], *theirs[-1:]]:
                    return option.group
        return None

    def within_open(self, key: str) -> bool:
        """Whether the dotted `key` lies where names are the user's own: among parts, or in a
        mapping that some file has empty."""
        rooms = {place.rsplit(".", 2)[0] for option in self.options for place in option.inner}
        rooms |= {path for path, value in self._leaves if value == {}}
        return any(key.startswith(f"{room}.") for room in rooms)

    @cached_property
    def top_node(self) -> dict[str, Any]:
        """The top config's own keys, without Hydra's."""
        file = self.files.get(("", self.top))
        node = read_yaml(file) if file else {}
        node.pop("hydra", None)
        return node

    def defaults(self) -> dict[str, str]:
        """Group to the option that the top config takes."""
        entries = self.top_node.get("defaults") or []
        pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
        return {str(g): str(o) for g, o in pairs if not str(g).startswith("override ")}

    def file_that_sets(self, path: str, chosen: dict[str, str]) -> Path | None:
        """The YAML file among the `chosen` options that holds the dotted key, if one does."""
        parent, _, leaf = path.rpartition(".")
        for option in self.options:
            if chosen.get(option.group) == option.name:
                mapping = option.mapping_at(parent)
                if mapping is not None and leaf in mapping:
                    return option.file_of(parent, leaf)
        return None

    @cached_property
    def keys(self) -> list[str]:
        """Every dotted key that the top config or some option lists."""
        found = {key for key, _ in self._leaves}
        return sorted(key for key in found if key.split(".")[0] != "defaults")

    @cached_property
    def _leaves(self) -> list[tuple[str, Any]]:
        nodes = [(self.top_node, ""), *((option.node, option.place) for option in self.options)]
        return [leaf for node, place in nodes for leaf in leaves(node, place)]


def _over(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What a file says over what it shares, nodes within nodes too."""
    both = {**shared, **own}
    for key in shared.keys() & own.keys():
        if isinstance(shared[key], dict) and isinstance(own[key], dict):
            both[key] = _over(shared[key], own[key])
    return both


def _inner(defaults: list[Any], place: str) -> dict[str, str]:
    """`- /data@parts.mine.corpus: pydoc` as {`data.parts.mine.corpus`: `pydoc`}."""
    pairs = [pair for entry in defaults if isinstance(entry, dict) for pair in entry.items()]
    own = [(str(g), str(o)) for g, o in pairs if not str(g).startswith("override ")]
    return {f"{place}.{g.split('@')[1]}": o for g, o in own if "@" in g}


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, as it stands; Refused says in which line it is broken.

    Only its keys matter here. Hydra reads it again to compose it, and finds duplicate keys.
    """
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), _LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(yaml_problem(error, file)) from None
    if not isinstance(loaded, dict | None):
        raise Refused(f"{file}: holds no mapping of keys to values")
    return loaded or {}


def yaml_problem(error: Exception, file: Path | None = None) -> str:
    """One line for what a YAML parser refuses."""
    mark: Any = getattr(error, "problem_mark", None)
    name = str(file or (mark and mark.name) or "a config file")
    where = f"{name}, line {mark.line + 1}" if mark else name
    what = str(getattr(error, "problem", None) or error).splitlines()[0]
    return f"{where}: is no YAML ({what})"


def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf of a mapping; of `node` itself where it has none."""
    if not isinstance(node, dict) or not node:
        yield path, node
        return
    for key in node:
        yield from leaves(node[key], f"{path}.{key}" if path else str(key))
