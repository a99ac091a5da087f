"""How far a pass over a text has come."""

from typing import Any


def bar(label: str) -> Any:
    """A bar of bytes on a terminal, gone at its end; nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(desc=label, unit="B", unit_scale=True, leave=False, mininterval=0.5, disable=None)
