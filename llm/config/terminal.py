"""Text from models and from strangers, as a terminal may be shown it."""

import re
from typing import TextIO

#: C0 but for tab and newline, DEL, C1, and what turns the direction of writing: characters that
#: move the cursor, recolour or rename the window, or make a line read as another one.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""`text` with its control characters written out, escape as \x1b."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown(text: str, stream: TextIO) -> str:
    """`text` as it goes to `stream`: exact into a file or a pipe, harmless on a terminal."""
    return visible(text) if stream.isatty() else text
