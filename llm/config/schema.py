"""The schema of a config node is the signature of the class that it names.

Keyword-only parameters are what the config sets. Parameters before the `*` are handed over by
`llm.build` (a vocabulary size, a geometry): a node whose class has some becomes a factory that
waits for them.
"""

import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from llm.config.errors import Refused
from llm.config.types import UNRECORDED, Between


class Node:
    """Annotation of a parameter that holds another node: a mapping that names its `_target_`."""


@dataclass(frozen=True)
class Common:
    """Marks a node that has the keys of a dataclass, too: `Annotated[Node, Common(DataSettings)]`.

    They say how what the node makes is used, so they are no business of its constructor.
    """

    section: Any


@dataclass(frozen=True)
class Parameter:
    """One key of a node: its type, its range, whether it can change a result."""

    name: str
    annotation: Any
    default: Any  # MISSING where the config must give a value
    recorded: bool

    def check(self, value: Any) -> Any:
        """`value` in its canonical spelling (3 for 3.0 where an int is asked), or Refused."""
        return _check(value, self.annotation)


@dataclass(frozen=True)
class Schema:
    """The keys that a class takes from its YAML node, and those that `llm.build` hands it."""

    target: Any
    keys: dict[str, Parameter]
    handed: tuple[str, ...]


def locate(path: Any, plugins: Iterable[str] = ()) -> Any:
    """The class that `_target_: path` names, from `llm` or a listed plugin only."""
    if not isinstance(path, str) or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise Refused(f"{path!r} names no class; write it as package.module.Class", "_target_")
    allowed = ("llm", *plugins)
    if path.split(".")[0] not in allowed:
        package = path.split(".")[0]
        raise Refused(
            f"{path} lies outside llm; if you trust it, add 'plugins=[{package}]' to the command",
            "_target_",
        )
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise Refused(f"there is no {path} ({error})", "_target_") from None
    # A module of ours imports others: llm.data.custom.Path is no class of llm.
    if not inspect.isclass(found) or found.__module__.split(".")[0] not in allowed:
        raise Refused(f"{path} is no class of {path.split('.')[0]}", "_target_")
    return found


@cache
def schema_of(target: Any) -> Schema:
    """Read a constructor's signature: ranges from `Annotated`, identity from `UNRECORDED`."""
    source = target if is_dataclass(target) or not inspect.isclass(target) else target.__init__
    hints = get_type_hints(source, include_extras=True)
    keys, handed = {}, []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise TypeError(f"{target.__name__}: a config class lists its parameters, no *{name}")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            handed.append(name)
            continue
        annotation = hints.get(name, Any)
        default = MISSING if parameter.default is parameter.empty else parameter.default
        keys[name] = Parameter(name, annotation, default, not _mentions_unrecorded(annotation))
    return Schema(target, keys, tuple(handed))


def _mentions_unrecorded(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated and UNRECORDED in annotation.__metadata__


def holds_node(annotation: Any) -> bool:
    """Whether a parameter of this type holds another config node (or a factory made from one)."""
    options = _options(annotation)
    return any(option is Node or is_dataclass(option) for option in options)


def dataclass_of(annotation: Any) -> Any | None:
    """The dataclass that describes a node without `_target_`, where the annotation is one."""
    return next((option for option in _options(annotation) if is_dataclass(option)), None)


def _options(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def entry_of(annotation: Any) -> Any | None:
    """The annotation of a mapping's values, where it is `dict[str, …]`: names of the user's own."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def common_keys(annotation: Any) -> dict[str, Parameter]:
    """The keys that every option of a group has beside those of its class."""
    if get_origin(annotation) is Annotated:
        for note in annotation.__metadata__:
            if isinstance(note, Common):
                return schema_of(note.section).keys
    return {}


def describe(annotation: Any) -> str:
    """The type as a user would say it: "a whole number, at least 1"."""
    if get_origin(annotation) is Annotated:
        base, *notes = get_args(annotation)
        bounds = [str(note) for note in notes if isinstance(note, Between)]
        return ", ".join([describe(base), *bounds])
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(annotation))
    if get_origin(annotation) is list:
        return f"a list (each {describe(get_args(annotation)[0])})"
    if get_origin(annotation) is dict:
        return "a mapping of names to values"
    return _NAMES.get(annotation, "a config node")


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


class _OutOfRange(Refused):
    """The type is right and the value is not: in `X | None` no other option will take it."""


def _wrong(value: Any, annotation: Any) -> Refused:
    return Refused(f"is not {describe(annotation)}: {'null' if value is None else repr(value)}")


def _check(value: Any, annotation: Any) -> Any:
    if annotation is Any:
        return value
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *notes = get_args(annotation)
        try:
            value = _check(value, base)
        except _OutOfRange:
            raise
        except Refused:
            raise _wrong(value, annotation) from None
        for note in notes:
            if isinstance(note, Between) and value is not None and not note.holds(value):
                raise _OutOfRange(f"is {value}, and must be {note}")
        return value
    if origin in (Union, types.UnionType):
        for option in get_args(annotation):
            try:
                return _check(value, option)
            except _OutOfRange:
                raise
            except Refused:
                continue
        raise _wrong(value, annotation)
    if origin is Literal:
        for choice in get_args(annotation):
            if value == choice and type(value) is type(choice):
                return value
        raise _wrong(value, annotation)
    if origin is list:
        if not isinstance(value, list):
            raise Refused(f"{_wrong(value, annotation)} (write [a,b])")
        return [_check(item, get_args(annotation)[0]) for item in value]
    if origin is dict:  # llm.config.validate looks into mappings
        raise _wrong(value, annotation)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is type(None) and value is None:
        return None
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is float and number and abs(value) <= sys.float_info.max:  # finite, no NaN
        return float(value)
    if annotation is int and number and abs(value) < 2**63 and value == int(value):
        return int(value)
    if (
        annotation is str
        and isinstance(value, str | int)
        and not isinstance(value, bool)
        and value != ""
    ):
        return str(value)
    if annotation not in _NAMES and annotation is not Node and not is_dataclass(annotation):
        raise TypeError(f"a signature names the type {annotation}, which no config can hold")
    raise _wrong(value, annotation)
