"""Overrides as people type them, made ready for Hydra.

Hydra refuses a misspelt `model.n_layrs=3`, but starts a run with `+model.n_layrs=3`, and refuses
`moe.n_experts=8` where `moe=dense` has no such key, which is what a grid produces. Here every
value override becomes `++key=value`, which Hydra always takes, and `llm.config.validate` alone
judges keys, wherever they were written.
"""

import re
import shlex
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    Sweep,
)
from hydra.errors import HydraException

from llm.config import space
from llm.config.choices import Choices
from llm.config.errors import Refused
from llm.config.suggest import did_you_mean, nearest

#: Sections of Hydra's config that take keys of their own.
HYDRA_OPEN = ("callbacks", "launcher", "sweeper", "job", "job_logging", "hydra_logging")
#: What of Hydra's own can be chosen on the command line.
HYDRA_GROUPS = [
    f"hydra/{name}" for name in "launcher sweeper sweeper/sampler job_logging hydra_logging".split()
]
_SEARCH_PATH = re.compile(r"\+*hydra\.searchpath=")


@dataclass(frozen=True)
class Typed:
    """One override: as typed, as Hydra gets it, and what it sets."""

    text: str
    for_hydra: str
    key: str
    is_group: bool
    values: list[str]  # several in a sweep; of an interval its two ends
    sweep: Sweep | Glob | None = None  # the values as Hydra reads them, where it is a sweep

    @property
    def is_interval(self) -> bool:
        """Whether only a search can take it: its values cannot be listed."""
        return space.is_interval(self.sweep)

    @property
    def deletes(self) -> bool:
        """Whether it is `~key`, or `~key=value`, which deletes that value only."""
        return self.for_hydra.startswith("~")

    def choosing(self, value: str) -> str:
        """The override for Hydra that takes one of the values."""
        return self.for_hydra if self.deletes else f"{self.for_hydra.partition('=')[0]}={value}"


def read(texts: list[str], choices: Choices, multirun: bool) -> list[Typed]:
    """Parse and check group choices; Refused names an unknown group or option."""
    read = [_read(t, choices, multirun) for t in texts if not _SEARCH_PATH.match(t)]
    chosen = choices.defaults() | {o.key: o.values[0] for o in read if o.is_group and o.values}
    there = {p for o in choices.options if chosen.get(o.group) == o.name for p in o.inner}
    # Hydra wants to be told whether a part is another one or takes the place of one.
    return [
        replace(o, for_hydra=o.for_hydra.lstrip("+")) if o.key.replace("/", ".") in there else o
        for o in read
    ]


def as_typed(for_hydra: str) -> str:
    """An override that Hydra takes, as one types it: `++seed=1` is `seed=1`, and
    `+data@data.parts.mine.corpus=pydoc` is `data/parts/mine/corpus=pydoc`."""
    key, equals, value = for_hydra.lstrip("+").partition("=")
    if "@" in key:
        key = key.partition("@")[2].replace(".", "/")
    return f"{key}{equals}{value}"


def of_text(key: str, text: str) -> str:
    """The override that sets `key` to just this text, quoted for Hydra and for the shell."""
    if text.count("${") > text.count("}"):  # no reference to another key
        text = text.replace("${", r"\${")
    return shlex.quote(f"{key}={QuotedString(text, Quote.double).with_quotes()}")


def search_path(texts: list[str]) -> list[str]:
    """The folders that `hydra.searchpath=[…]` adds, another spelling of --config-dir."""
    listed = [parse_value(_SEARCH_PATH.sub("", t)) for t in texts if _SEARCH_PATH.match(t)]
    folders = [str(folder).removeprefix("file://") for value in listed for folder in value]
    for folder in folders:
        if "://" in folder:
            raise Refused(f"hydra.searchpath: {folder}: only folders are searched")
    return folders


def parse_value(text: str) -> Any:
    """The value that Hydra reads in `text`, the right side of an override."""
    return OverridesParser.create().parse_override(f"key={text}").value()


def _read(text: str, choices: Choices, multirun: bool) -> Typed:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        name, equals, value = text.partition("=")
        form = space.form_of(name, value)
        if form:
            raise Refused(f"{text}: write {form}") from None
        guess = nearest(name, [*choices.groups, *choices.keys])
        hint = f"; did you mean {guess}=VALUE?" if guess else ""
        if equals and re.fullmatch(r"[+~]*[\w/.$-]+", name):
            hint = f"; quote special characters: {of_text(name, value)}"
        raise Refused(f"{text}: is no key=value{hint}") from None
    key = override.key_or_group
    if key in ("", "hydra"):
        raise Refused(f"{text}: is no key=value")
    if key == "hydra.mode":
        raise Refused(f"{text}: add -m to the command for a sweep")
    if "/" in key and key.startswith("hydra/") and key not in HYDRA_GROUPS:
        raise Refused(f"{text}: there is no group {key}{did_you_mean(key, HYDRA_GROUPS)}")
    if key.startswith("hydra/"):
        return Typed(text, text, key, False, [])
    if key.startswith("hydra.sweeper.params"):
        itself = text.lstrip("+").removeprefix("hydra.sweeper.params").lstrip(".=") or "KEY=A,B"
        raise Refused(f"{text}: that is for YAML files; write {shlex.quote(itself)}")
    if key.startswith("hydra."):  # Hydra refuses a key of its own that it lacks, but not behind +
        is_open = key.split(".")[1] in HYDRA_OPEN
        return Typed(text, text if is_open else text.lstrip("+"), key, False, [])
    if override.package:
        raise Refused(f"{text}: a group has one place; write {key}=OPTION")
    if override.type is OverrideType.DEL:
        if key in choices.groups:
            options = "|".join(choices.groups[key])
            raise Refused(f"{text}: nothing can be left out; choose one: {key}={options}")
        return Typed(text, text, key, False, [text.partition("=")[2]])
    values = _values(override, choices.groups.get(key, []))
    sweep: Any = override.value() if override.is_sweep_override() else None
    if override.is_sweep_override() and not multirun:
        as_list = shlex.quote(f"{key}=[{','.join(values)}]")
        takes_list = len(values) > 1 and key not in choices.groups
        list_form = f" or {as_list} for a list" if takes_list else ""
        list_form = " and hydra/sweeper=optuna" if space.is_interval(sweep) else list_form
        raise Refused(f"{text}: several values make a sweep; add -m,{list_form}".rstrip(","))
    space.check(text, sweep)
    if override.is_sweep_override() and not values:
        among = f" of {', '.join(choices.groups[key])}" if key in choices.groups else ""
        raise Refused(f"{text}: takes none{among}")
    if key in choices.groups:
        for value in values:
            _check_option(text, key, value, choices)
        return Typed(text, text.lstrip("+"), key, True, values, sweep)
    if "/" in key:
        dotted = key.replace("/", ".")
        group = choices.part(dotted)
        if group is not None:
            for value in values:
                _check_option(text, group, value, choices)
            for_hydra = f"+{group}@{dotted}={text.partition('=')[2]}"
            return Typed(text, for_hydra, key, True, values, sweep)
        guess = dotted if dotted in choices.keys else nearest(key, choices.groups)
        hint = f"; did you mean {guess}?" if guess else ""
        raise Refused(f"{text}: there is no group {key}{hint}")
    return Typed(text, "++" + text.lstrip("+"), key, False, values, sweep)


def _values(override: Override, options: list[str]) -> list[str]:
    value: Any = override.value()
    if isinstance(value, Glob):
        return value.filter(options)
    if isinstance(value, IntervalSweep):  # a range that a search plugin draws from
        return [str(end).removesuffix(".0") for end in (value.start, value.end)]
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _check_option(text: str, group: str, value: str, choices: Choices) -> None:
    options = choices.groups[group]
    if value in options:
        return
    guess = nearest(value, options)
    remedy = f"did you mean {group}={guess}?" if guess else f"there are {', '.join(options)}"
    if value == "null" and choices.defaults().get(group) == "None":
        remedy = "leave it out for none"
    raise Refused(f"{text}: there is no {group} named {value!r}; {remedy}")


def check_listed(typed: list[Typed], choices: Choices) -> None:
    """Refuse a key that no YAML file lists: what `--cfg` can judge without importing torch."""
    sections = {key.rsplit(".", i)[0] for key in choices.keys for i in range(1, key.count(".") + 1)}
    for override in typed:
        if override.is_group or override.key.startswith("hydra"):
            continue
        if choices.within_open(override.key):
            continue
        if override.key not in choices.keys and override.key not in sections:
            hint = did_you_mean(override.key, [*choices.keys, *choices.groups])
            raise Refused(f"{override.text}: no such key{hint}")
