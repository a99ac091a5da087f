"""The config contract: every key, type and range is checked before any work.

The composed config is walked beside the signatures of the classes that it names. What comes out is
canonical: defaults filled in, numbers in one spelling, keys without effect gone; so that equal
experiments have equal configs, however they were typed.
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, replace
from typing import Any

from llm.config.choices import Choices, leaves
from llm.config.errors import Refused
from llm.config.root import Experiment
from llm.config.schema import (
    Parameter,
    Schema,
    common_keys,
    dataclass_of,
    entry_of,
    holds_node,
    locate,
    schema_of,
)
from llm.config.suggest import did_you_mean


@dataclass
class Validated:
    """`config` builds the run; `identity` is the part of it that can change a result."""

    config: dict[str, Any]
    identity: dict[str, Any]
    chosen: dict[str, str]  # group to option
    notes: list[str]  # one line for each key without effect


def validate(
    raw: dict[str, Any],
    choices: Choices,
    chosen: dict[str, str],
    typed: dict[str, str],
    groups: list[str],
    plugins: list[str],
) -> Validated:
    """Check `raw`, the composed and resolved config.

    Args:
        raw: the config as plain dicts
        choices: the groups, to tell a key without effect from a mistyped one
        chosen: group to option, as composed
        typed: dotted key to override, as the user typed it, to name keys in the user's own words
        groups: those of which an option was typed
        plugins: packages beside `llm` that `_target_` may name
    Raises:
        Refused: one sentence with the key as typed and the nearest valid one
    """
    walk = _Walk(choices, chosen, typed, groups, plugins)
    config, identity = walk.node(raw, schema_of(Experiment), "")
    return Validated(config, identity, chosen, walk.notes)


@dataclass
class _Walk:
    choices: Choices
    chosen: dict[str, str]
    typed: dict[str, str]
    groups: list[str]
    plugins: list[str]
    notes: list[str] = field(default_factory=list)

    def refusal(self, path: str, message: str) -> Refused:
        """Names the key as typed, or the file that it stands in where that is an option's."""
        if path in self.typed:
            return Refused(f"{self.typed[path]}: {message}")
        file = self.choices.file_that_sets(path, self.chosen)
        return Refused(f"{file}: {path}: {message}" if file else f"{path}: {message}")

    def node(
        self, raw: Any, schema: Schema, path: str, target: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The canonical node and its identity; `target` is None for a section such as `train`."""
        config: dict[str, Any] = {"_target_": target} if target else {}
        identity = dict(config)
        for key in raw:
            if key not in schema.keys and key not in config:
                self.unknown(key, raw[key], schema, path)
        for key, parameter in schema.keys.items():
            here = f"{path}.{key}" if path else key
            if key in raw:
                config[key], recorded = self.value(raw[key], parameter, here)
            elif parameter.default is not MISSING:
                config[key] = recorded = parameter.default
            else:
                raise self.missing(here)
            if parameter.recorded:
                identity[key] = recorded
        if target is None:
            try:
                made = schema.target(**config)  # what its own checks refuse
            except Refused as refusal:
                raise self.refusal(f"{path}.{refusal.key}", refusal.message) from None
            for key, value in config.items():
                one_spelling = getattr(made, key)
                if key in identity and one_spelling != value:
                    config[key] = identity[key] = one_spelling
        return config, identity

    def value(self, value: Any, parameter: Parameter, path: str) -> tuple[Any, Any]:
        """The canonical value of one key, and the part of it that enters the identity."""
        entry = entry_of(parameter.annotation)
        if entry is not None and isinstance(value, dict):
            return self.mapping(value, entry, path)
        if holds_node(parameter.annotation) and isinstance(value, dict):
            section = dataclass_of(parameter.annotation)
            if section is not None:
                return self.node(value, schema_of(section), path)
            if "_target_" not in value:
                raise self.refusal(path, "names no _target_, the class that it configures")
            target = value["_target_"]
            schema = schema_of(self.locate(target, path))
            keys = {**schema.keys, **common_keys(parameter.annotation)}
            return self.node(value, replace(schema, keys=keys), path, target)
        group = path.replace(".", "/")
        if holds_node(parameter.annotation) and group in self.choices.groups:
            known = value in self.choices.groups[group]
            option = value if known else "|".join(self.choices.groups[group])
            raise self.refusal(path, f"is a config group; write {group}={option}")
        try:
            checked = parameter.check(value)
        except Refused as refusal:
            raise self.refusal(path, refusal.message) from None
        return checked, checked

    def mapping(
        self, value: dict[Any, Any], entry: Any, path: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same for each value of a mapping whose names are the user's own."""
        config, identity = {}, {}
        for name, item in value.items():
            if not re.fullmatch(r"[\w-]+", str(name)):
                raise self.refusal(path, f"{name!r}: a name is made of letters, digits, _ and -")
            parameter = Parameter(str(name), entry, MISSING, True)
            made = self.value(item, parameter, f"{path}.{name}")
            config[str(name)], identity[str(name)] = made
        return config, identity

    def locate(self, target: Any, path: str) -> Any:
        room = path.split(".")[0]
        try:
            found = locate(target, self.plugins)
            if target.startswith("llm.") and target.split(".")[1] not in (room, "layers"):
                raise Refused(f"{target} is no part of llm.{room}")
            return found
        except Refused as refusal:
            raise self.refusal(f"{path}._target_", refusal.message) from None

    def missing(self, path: str) -> Refused:
        options = self.choices.groups.get(path.replace(".", "/"))
        remedy = f"choose one of {', '.join(options)}" if options else f"set {path}=VALUE"
        return self.refusal(path, f"is missing; {remedy}")

    def unknown(self, key: str, value: Any, schema: Schema, path: str) -> None:
        """Note a key that another option of the group uses; refuse one that none does."""
        here = f"{path}.{key}" if path else key
        if key in schema.handed:
            raise self.refusal(here, "follows from the rest of the config and cannot be set")
        whole = isinstance(value, dict) and path and self.used_elsewhere(here, value)
        for leaf, leaf_value in [(here, value)] if whole else leaves(value, here):
            if not path or not self.used_elsewhere(leaf, leaf_value):
                # A misspelt key in a file of the user's is among those that files list.
                hint = did_you_mean(leaf, [k for k in self.known(schema, path) if k != leaf])
                raise self.refusal(leaf, f"no such key{hint}")
            groups = [g for g in self.chosen if f"{path}.".startswith(g.replace("/", ".") + ".")]
            group = max(groups, key=len, default="")
            choice = f"{group}={self.chosen[group]}" if group else "this choice"
            typed = any(f"{leaf}.".startswith(f"{key}.") for key in self.typed)
            if typed and group and not self.decided(group):
                first, *others = (option for option, _ in self.takers(leaf))
                others = [option.partition("=")[2] for option in others]
                remedy = f"add {first} (or {', '.join(others)})" if others else f"add {first}"
                raise self.refusal(leaf, f"has no effect with the default {choice}; {remedy}")
            self.notes.append(f"{self.typed.get(leaf, leaf)} has no effect with {choice}")

    def decided(self, group: str) -> bool:
        """Whether the line says which option of the group is taken: by its name, by a group around
        it, or by an option that brings another than the default (`model=mixtral` its experts)."""
        outer, default = group.rpartition("/")[0], self.choices.defaults().get(group)
        if group in self.groups or default not in (None, self.chosen.get(group)):
            return True
        return bool(outer) and self.decided(outer)

    def used_elsewhere(self, leaf: str, value: Any) -> bool:
        """Whether the class of another option takes this key; it must take the value, too.

        What YAML files list does not count: a misspelt key in a file of the user's is listed there.
        """
        parent, _, key = leaf.rpartition(".")
        if key == "_target_":
            nodes = (option.mapping_at(parent) or {} for option in self.choices.options)
            return any(key in node for node in nodes) and bool(self.locate(value, parent))
        parameter = next((parameter for _, parameter in self.takers(leaf)), None)
        if parameter is None:
            return False
        if isinstance(value, dict):
            # A part of a mapping, perhaps: what is typed for it need not be the whole.
            return entry_of(parameter.annotation) is not None
        self.value(value, parameter, leaf)
        return True

    def takers(self, leaf: str) -> Iterator[tuple[str, Parameter]]:
        """The options whose class takes this key, and what it is there."""
        parent, _, key = leaf.rpartition(".")
        for option in self.choices.options:
            node = option.mapping_at(parent) or {}
            try:
                keys = schema_of(locate(node["_target_"], self.plugins)).keys
            except (KeyError, Refused):  # the class of a plugin that this command does not list
                continue
            if key in keys:
                yield f"{option.group}={option.name}", keys[key]

    def known(self, schema: Schema, path: str) -> list[str]:
        own = [f"{path}.{name}" if path else name for name in schema.keys]
        return [*own, *self.choices.groups, *self.choices.keys]
