"""Overrides as people type them, made ready for Hydra.

Hydra refuses a misspelt `model.n_layrs=3`, but starts a run with `+model.n_layrs=3`, and refuses
`moe.n_experts=8` where `moe=dense` has no such key, which is what a grid produces. Here every
value override becomes `++key=value`, which Hydra always takes, and `llm.config.validate` alone
judges keys, wherever they were written.
"""

from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import OverrideParseException

from llm.config.choices import Choices
from llm.config.errors import Refused
from llm.config.suggest import nearest


@dataclass(frozen=True)
class Typed:
    """One override: as typed, as Hydra gets it, and what it sets."""

    text: str
    for_hydra: str
    key: str
    is_group: bool
    values: list[str]  # several in a sweep


def read(texts: list[str], choices: Choices, multirun: bool) -> list[Typed]:
    """Parse and check group choices; Refused names an unknown group or option."""
    return [_read(text, choices, multirun) for text in texts]


def _read(text: str, choices: Choices, multirun: bool) -> Typed:
    try:
        override = OverridesParser.create().parse_override(text)
    except OverrideParseException:
        hint = "; quote values that hold special characters: 'key=\"value\"'" if "=" in text else ""
        raise Refused(f"{text}: is no key=value{hint}") from None
    key = override.key_or_group
    values = _values(override)
    if (
        key.startswith(("hydra.", "hydra/"))
        or override.type is OverrideType.DEL
        or override.package
    ):
        return Typed(text, text, key, False, values)
    if len(values) > 1 and not multirun:
        raise Refused(f"{text}: several values make a sweep; add -m")
    if key in choices.groups:
        for value in values:
            _check_option(text, key, value, choices)
        return Typed(text, text.lstrip("+"), key, True, values)
    if "/" in key:
        dotted = key.replace("/", ".")
        guess = dotted if dotted in choices.keys else nearest(key, choices.groups)
        raise Refused(
            f"{text}: there is no group {key}" + (f"; did you mean {guess}?" if guess else "")
        )
    return Typed(text, "++" + text.lstrip("+"), key, False, values)


def _values(override: Override) -> list[str]:
    if override.type is OverrideType.DEL:
        return []
    if override.is_sweep_override() and override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _check_option(text: str, group: str, value: str, choices: Choices) -> None:
    options = choices.groups[group]
    if value in options or value == "null" or value.startswith("["):
        return
    guess = nearest(value, options)
    remedy = f"did you mean {group}={guess}?" if guess else f"there are {', '.join(options)}"
    raise Refused(f"{text}: there is no {group} named {value!r}; {remedy}")


def check_listed(typed: list[Typed], choices: Choices, top_keys: list[str]) -> None:
    """Refuse a key that no YAML file lists: what `--cfg` can judge without importing torch."""
    known = [*top_keys, *choices.keys]
    for override in typed:
        if override.is_group or override.key.startswith("hydra") or override.text.startswith("~"):
            continue
        if override.key not in known:
            guess = nearest(override.key, known)
            raise Refused(
                f"{override.text}: no such key" + (f"; did you mean {guess}?" if guess else "")
            )
