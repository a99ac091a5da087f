"""Which option of each group made a run: recorded, or inferred from the config of an old run."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from llm.config.choices import Choices, Option
from llm.runs.identity import current
from llm.runs.labels import GROUPS, flat


def chosen(run_id: str, facts: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Group to option, as far as it is known.

    Old runs say it of data and tokenizer only. The words that their ids begin with count where the
    config does not contradict them: the id of an upcycled run has those of its start.
    """
    told: dict[str, str] = dict(facts.get("chosen") or {})
    if "moe" in told:
        return told
    words = dict.fromkeys(GROUPS, "")
    stem = re.fullmatch(r"(?!from_)([^-]+)-([^-]+)-(.+)-[0-9a-f]{10}", run_id)
    if stem:
        words |= zip(GROUPS, stem.groups(), strict=False)
    for group in GROUPS:
        node = config.get(group)
        if group not in told and isinstance(node, Mapping):
            option = _likeliest(group, flat(node), words[group])
            told |= {} if option is None else {group: option}
    return told


def _likeliest(group: str, node: Mapping[str, Any], word: str) -> str | None:
    """`word`, if it may be the option that made `node`, else the option that has most of it."""
    options = _options(group)
    fitting = {
        name: sum(node.get(key) == value for key, value in keys.items())
        for name, keys in options.items()
        if keys.get("_target_") == node.get("_target_")
    }
    if word in fitting or (word and word not in options):  # of the user's own configs
        return word
    return max(fitting, key=lambda name: fitting[name], default=None)


@cache
def _options(group: str) -> dict[str, dict[str, Any]]:
    found: list[Option] = [option for option in Choices().options if option.group == group]
    return {option.name: flat(current(option.node)) for option in found}
