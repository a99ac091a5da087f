"""The config contract: every key, type and range is checked before any work.

The composed config is walked beside the signatures of the classes that it names. What comes out is
canonical: defaults filled in, numbers in one spelling, keys without effect gone; so that equal
experiments have equal configs, however they were typed.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

from llm.config.choices import Choices, leaves
from llm.config.errors import Refused
from llm.config.root import Experiment
from llm.config.schema import Schema, dataclass_of, holds_node, locate, schema_of
from llm.config.suggest import nearest


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
    plugins: list[str],
) -> Validated:
    """Check `raw`, the composed and resolved config.

    Args:
        raw: the config as plain dicts
        choices: the groups, to tell a key without effect from a mistyped one
        chosen: group to option, as composed
        typed: dotted key to override, as the user typed it, to name keys in the user's own words
        plugins: packages beside `llm` that `_target_` may name
    Raises:
        Refused: one sentence with the key as typed and the nearest valid one
    """
    walk = _Walk(choices, chosen, typed, plugins, schema_of(Experiment))
    config, identity = walk.node(raw, schema_of(Experiment), "")
    return Validated(config, identity, chosen, walk.notes)


@dataclass
class _Walk:
    choices: Choices
    chosen: dict[str, str]
    typed: dict[str, str]
    plugins: list[str]
    root: Schema
    notes: list[str] = field(default_factory=list)

    def refusal(self, path: str, message: str) -> Refused:
        typed = next((text for key, text in self.typed.items() if key == path), None)
        return Refused(f"{typed or path}: {message}")

    def node(self, raw: Any, schema: Schema, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        config: dict[str, Any] = {}
        if "_target_" in raw:
            config["_target_"] = raw["_target_"]
        identity = dict(config)
        for key in raw:
            if key not in schema.keys and key != "_target_":
                self.unknown(key, raw[key], schema, path)
        for key, parameter in schema.keys.items():
            here = f"{path}.{key}" if path else key
            if key not in raw:
                if parameter.default is MISSING:
                    raise self.refusal(here, "is missing")
                config[key] = parameter.default
                if parameter.recorded:
                    identity[key] = parameter.default
                continue
            value = raw[key]
            if holds_node(parameter.annotation) and value is not None:
                inner_schema = self.schema_at(value, parameter.annotation, here)
                config[key], inner_identity = self.node(value, inner_schema, here)
            else:
                try:
                    config[key] = inner_identity = parameter.check(value)
                except Refused as refusal:
                    raise self.refusal(here, refusal.message) from None
            if parameter.recorded:
                identity[key] = inner_identity
        return config, identity

    def schema_at(self, value: Any, annotation: Any, path: str) -> Schema:
        group = path.replace(".", "/")
        if not isinstance(value, dict):
            option = value if value in self.choices.groups.get(group, []) else "OPTION"
            remedy = f"is a config group; write {group}={option}"
            raise self.refusal(path, remedy if group in self.choices.groups else "is a config node")
        if "_target_" in value:
            try:
                return schema_of(locate(value["_target_"], self.plugins))
            except Refused as refusal:
                raise self.refusal(f"{path}._target_", refusal.message) from None
        described = dataclass_of(annotation)
        if described is None:
            raise self.refusal(path, "names no _target_, the class that it configures")
        return schema_of(described)

    def unknown(self, key: str, value: Any, schema: Schema, path: str) -> None:
        """Note a key that another option of the group uses; refuse one that none does."""
        here = f"{path}.{key}" if path else key
        if key in schema.handed:
            raise self.refusal(here, "follows from the rest of the config and cannot be set")
        for leaf, leaf_value in leaves(value, here):
            users = self.choices.lists(leaf) if path else []
            if not users:
                guess = nearest(leaf, self.known(schema, path))
                hint = f"; did you mean {guess}?" if guess else ""
                raise self.refusal(leaf, f"no such key{hint}")
            self.check_as_elsewhere(leaf, leaf_value, users)
            group = path.split(".")[0]
            choice = f"{group}={self.chosen[group]}" if group in self.chosen else "this choice"
            self.notes.append(f"{self.typed.get(leaf, leaf)} has no effect with {choice}")

    def check_as_elsewhere(self, leaf: str, value: Any, users: list[Any]) -> None:
        """A key without effect still needs a value that the class which uses it would take."""
        for user in users:
            if "_target_" in user:
                keys = schema_of(locate(user["_target_"], self.plugins)).keys
                parameter = keys.get(leaf.rpartition(".")[2])
                if parameter is not None and not holds_node(parameter.annotation):
                    try:
                        parameter.check(value)
                    except Refused as refusal:
                        raise self.refusal(leaf, refusal.message) from None
                    return

    def known(self, schema: Schema, path: str) -> list[str]:
        prefix = f"{path}." if path else ""
        own = [f"{prefix}{name}" for name in schema.keys]
        sections = [
            f"{name}.{key}"
            for name, parameter in self.root.keys.items()
            if (described := dataclass_of(parameter.annotation)) is not None
            for key in schema_of(described).keys
        ]
        return [*own, *self.root.keys, *self.choices.groups, *sections, *self.choices.keys]
