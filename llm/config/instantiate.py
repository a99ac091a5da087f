"""From a validated node to the object that it describes."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from llm.config.errors import Refused
from llm.config.schema import dataclass_of, entry_of, holds_node, locate, schema_of


class _Placed(Refused):
    """A refusal whose key is the full path already."""


def instantiate(node: dict[str, Any], path: str, plugins: Iterable[str] = ()) -> Any:
    """Call the constructor that `node` names with the node's values.

    A class with parameters that the config does not set (those before its `*`) becomes a factory
    that waits for them. So does every node within.

    Args:
        node: a validated node with its `_target_`
        path: dotted place of the node, put before the key that a constructor refuses
        plugins: packages beside `llm` that `_target_` may name
    """
    return _call(locate(node["_target_"], plugins), node, path, plugins)


def _call(target: Any, node: dict[str, Any], path: str, plugins: Iterable[str]) -> Any:
    schema = schema_of(target)
    arguments: dict[str, Any] = {}
    for key, parameter in schema.keys.items():
        value, inner = node.get(key, parameter.default), f"{path}.{key}" if path else key
        arguments[key] = _made(value, parameter.annotation, inner, plugins)
    factory = partial(_named, target, path, arguments)
    return factory if schema.handed else factory()


def _made(value: Any, annotation: Any, path: str, plugins: Iterable[str]) -> Any:
    """What a constructor gets for a value of the config: nodes within are made first."""
    entry = entry_of(annotation)
    if entry is not None and isinstance(value, dict):
        return {name: _made(v, entry, f"{path}.{name}", plugins) for name, v in value.items()}
    if not (holds_node(annotation) and isinstance(value, dict)):
        return value
    if "_target_" in value:
        return instantiate(value, path, plugins)
    return _call(dataclass_of(annotation), value, path, plugins)


def _named(target: Any, path: str, arguments: dict[str, Any], *handed: Any) -> Any:
    """Construct, and name the key of a refusal by its full path.

    The innermost node knows it: `moe.top_k` is refused while `model` is made, which calls for its
    feed-forward parts.
    """
    try:
        return target(*handed, **arguments)
    except _Placed:
        raise
    except Refused as refusal:
        key = refusal.key and (f"{path}.{refusal.key}" if path else refusal.key)
        raise _Placed(refusal.message, key or None) from None
