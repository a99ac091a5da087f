"""Studies: `experiments=NAME` is an overlay over the whole config, and what it sweeps.

The file `experiments/NAME.yaml` of a config folder chooses options (`override /moe: topk` in its
defaults list) and sets values, as any overlay with `# @package _global_`. What it sweeps stands
where Hydra has it:

    hydra:
      sweeper:
        params:            # a grid
          seed: 1,2,3
        lines:             # and jobs that are no grid: each line with the whole of it
          - moe=dense
          - moe=topk moe.n_experts=2,4,8

Here all of it becomes overrides as if it had been typed, so that sweeps and plans know one kind
only. What really was typed wins over them, and a line wins over the grid.
"""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from llm.config import overrides as override_reading
from llm.config.choices import Choices, read_yaml
from llm.config.errors import Refused
from llm.config.overrides import Typed

GROUP = "experiments"


def chosen_study(typed: list[Typed], choices: Choices) -> str | None:
    """The study that is typed, or that the top config takes."""
    named = [o for o in typed if o.key == GROUP]
    if named and len(named[-1].values) > 1:
        raise Refused(f"{named[-1].text}: one study at a time")
    name = named[-1].values[0] if named else choices.defaults().get(GROUP, "None")
    return None if name == "None" else name


class Sweep(NamedTuple):
    """What a study adds to all jobs of a sweep, and with each line: none for a grid alone."""

    grid: list[Typed]
    lines: list[list[Typed]]
    has_params: bool  # in `hydra.sweeper`, where Hydra's own sweepers would find them, too


def with_study(typed: list[Typed], choices: Choices) -> Sweep:
    """What the study sweeps beside `typed`, of the command line.

    Raises Refused for a mistake in the study's file.
    """
    study = chosen_study(typed, choices)
    files = [choices.files.get(("", choices.top)), choices.files.get((GROUP, study or ""))]
    by_hand = {o.key for o in typed if not o.deletes}
    grid: dict[str, Typed] = {}
    lines: list[list[Typed]] = []
    has_params = False
    for file in [file for file in files if file is not None]:
        sweeper = _sweeper(file)
        params = [f"{key}={_text(value)}" for key, value in (sweeper.get("params") or {}).items()]
        has_params |= bool(params)
        grid |= {o.key: o for o in _read(params, file, choices) if o.key not in by_hand}
        for line in sweeper.get("lines") or []:
            read = _read(shlex.split(str(line)), file, choices)
            lines.append([o for o in read if o.key not in by_hand])
    # A key of some lines is a key of all: others have the grid's value.
    of_lines = {o.key for line in lines for o in line}
    for line in lines:
        own = {o.key for o in line}
        line[:0] = [o for key, o in grid.items() if key in of_lines - own]
    unique = {tuple(o.text for o in line): line for line in lines}
    whole = [] if list(unique) == [()] else list(unique.values())
    return Sweep([o for key, o in grid.items() if key not in of_lines], whole, has_params)


def _sweeper(file: Path) -> dict[str, Any]:
    node: Any = read_yaml(file)
    for key in ("hydra", "sweeper"):
        node = node.get(key) or {}
        if not isinstance(node, dict):
            raise Refused(f"{file}: {key} is no mapping")
    return dict(node)


def _text(value: Any) -> str:
    """A YAML value as it is typed."""
    return "null" if value is None else str(value)


def _read(texts: list[str], file: Path, choices: Choices) -> list[Typed]:
    try:
        read = override_reading.read(texts, choices, True)
        for override in read:
            if override.key.split(".")[0].split("/")[0] in ("hydra", "plugins", GROUP):
                raise Refused(f"{override.text}: cannot be swept")
    except Refused as refusal:
        raise Refused(f"{file}: {refusal}") from None
    return read
