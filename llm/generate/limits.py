"""What may be asked of sampling, by a flag or by a command; no import of torch."""

import math

from llm.config.errors import Refused

COLDEST, HOTTEST = 0.1, 2.0


def temperature(text: str) -> float:
    """A temperature from what somebody typed, 0 for the likeliest token, or Refused."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value != 0 and not COLDEST <= value <= HOTTEST:
        raise Refused(f"must be a number from {COLDEST} to {HOTTEST}, or 0, not {text!r}")
    return value


def count(text: str) -> int:
    """A whole number from 1 on, or Refused."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise Refused(f"must be a whole number from 1 on, not {text!r}")
    return value


def seed(text: str) -> int:
    """A seed for the random draw: 0 to 2^63 − 1, or Refused."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise Refused(f"must be a whole number from 0 on, not {text!r}")
    return value
