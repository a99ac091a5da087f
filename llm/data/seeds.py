"""Numbers that decide what is drawn, the same on every machine and in every Python.

`hash()` differs between processes and `random.Random.choice` between versions of Python; the bytes
of SHA-256 and the Mersenne Twister's `random()` do neither.
"""

import hashlib
import random


def mix(*parts: int | str) -> int:
    """One 64-bit number from several: a different one for every different list of parts."""
    line = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], "big")


def stream(*parts: int | str) -> random.Random:
    """A source of which only `.random()` may be used: that alone is fixed for all versions."""
    return random.Random(mix(*parts))


def shuffled(items: list, *parts: int | str) -> list:
    """`items` in an order that is a function of `parts` alone (Fisher-Yates)."""
    items, uniform = list(items), stream(*parts).random
    for last in range(len(items) - 1, 0, -1):
        other = int(uniform() * (last + 1))
        items[last], items[other] = items[other], items[last]
    return items
