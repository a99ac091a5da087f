"""Colours on the terminal: how sure the model was of each word."""

import os
from typing import TextIO

#: From red over yellow to green, in the 256-colour palette.
RAMP = (196, 202, 208, 214, 220, 226, 190, 154, 118, 82, 46)
_PLAIN = "\033[0m"


def wanted(stream: TextIO) -> bool:
    """Whether colours go to `stream`: a terminal, unless NO_COLOR is set; FORCE_COLOR anywhere.

    See no-color.org; an empty variable counts as unset.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def by_confidence(text: str, probability: float) -> str:
    """`text` in the colour of a probability between 0 and 1."""
    step = min(int(probability * len(RAMP)), len(RAMP) - 1)
    return f"\033[38;5;{RAMP[step]}m{text}{_PLAIN}"


def legend() -> str:
    scale = "".join(by_confidence("██", (i + 0.5) / len(RAMP)) for i in range(len(RAMP)))
    return f"the model's own probability of each word: 0% {scale} 100%"


def dim(text: str) -> str:
    return f"\033[2m{text}{_PLAIN}"


def prompt(text: str) -> str:
    """`text` in bold cyan, its escapes marked as without width so that readline can count."""
    return f"\001\033[1;36m\002{text}\001{_PLAIN}\002"
