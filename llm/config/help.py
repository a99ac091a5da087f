"""`--help`: the groups with their options in a line each, and the keys of every run.

Read from the YAML files, whose first comment says what the choice is. Hydra's own help would
compose a config first and list bare names.
"""

import re
from pathlib import Path

from llm.config.choices import Choices

_USAGE = """\
Usage: python -m {command} [GROUP=OPTION ...] [KEY=VALUE ...]

  python -m {command} model=small moe=switch optimizer.lr=1e-3
  python -m {command} -m model=tiny,small moe=dense,switch seed=1,2,3

Options of each group (* is taken where nothing is said):"""

_FLAGS = """\
  -m                 a sweep over all combinations of values that are separated by commas
  --cfg job          print the config, with every key of the options taken, and stop
  --resolve          with --cfg: with all references resolved
  --config-dir DIR   options of your own beside these, in DIR/GROUP/NAME.yaml
  plugins=[PACKAGE]  allow their _target_ to name classes of your package
  --hydra-help       Hydra's own flags and groups

  eval "$(python -m {command} -sc install=bash)" completes all of this with the tab key"""


def help_text(command: str, choices: Choices) -> str:
    """All of it, without importing torch or composing anything."""
    lines = [_USAGE.format(command=command)]
    defaults = choices.defaults()
    width = max((len(name) for _, name in choices.files), default=0)
    for group, options in choices.groups.items():
        lines.append(f"\n{group}")
        for name in options:
            star = "*" if _default(group, choices, defaults) == name else " "
            lines.append(f" {star}{name:<{width}}  {summary(choices.files[group, name])}")
    top = choices.files.get(("", choices.top))
    return "\n".join(
        [
            *lines,
            "\nKeys of every run, beside those of the options:",
            *_own_keys(top),
            "",
            _FLAGS.format(command=command),
        ]
    )


def summary(file: Path) -> str:
    """The comment that a YAML file begins with, or its beginning where that is long."""
    comment: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comment.append(line.lstrip("# "))
    text = " ".join(comment)
    for end in (r"\. (?=[A-Z`])", "[:;] ", r" \("):
        if len(text) > 86:
            text = re.split(end, text)[0]
    return text.rstrip(".")


def _default(group: str, choices: Choices, defaults: dict[str, str]) -> str | None:
    """The option that is taken; a group within a group is named by the default of the outer."""
    if group in defaults:
        return defaults[group]
    outer, _, inner = group.rpartition("/")
    file = choices.files.get((outer, defaults.get(outer, "")))
    found = re.search(rf"^  - {inner}: (\S+)", file.read_text(), re.MULTILINE) if file else None
    return found[1] if found else None


def _own_keys(top: Path | None) -> list[str]:
    """The top config as it stands, comments and all, without its defaults and Hydra's keys."""
    blocks = re.split(r"\n(?=\w)", top.read_text(encoding="utf-8")) if top else []
    kept = [b for b in blocks if re.match(r"(?!defaults:|hydra:)\w", b)]
    return [f"  {line}" for block in kept for line in block.splitlines() if line]
