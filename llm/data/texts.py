"""Documents as a stream of stretches, so that none of them has to fit in memory."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

#: Characters after which a document is cut at the next place that no tokenizer notices.
STRETCH = 1 << 20
#: Characters after which it is cut anywhere, where there is no such place (no white space at all).
LONGEST = 1 << 24
#: Stands between documents in some corpora's .txt files (TinyStories).
SEPARATOR = "<|endoftext|>"

# Ahead of the last white-space character before something else, as `llm.tokenizer.base.stretches`
# cuts: no piece of GPT-2's pattern lies across.
_SAFE = re.compile(r"[^\S\x1c-\x1f](?=[\S\x1c-\x1f])")


class Stretch(NamedTuple):
    """A whole text, or a part of one: `more` says that the next stretch goes on with it."""

    text: str
    more: bool = False


def whole(text: str) -> Iterator[Stretch]:
    """`text` as stretches."""
    while (cut := _cut(text)) is not None:
        yield Stretch(text[:cut], True)
        text = text[cut:]
    yield Stretch(text)


def separated(chunks: Iterable[str]) -> Iterator[Stretch]:
    """The documents in a text that comes in chunks, with `SEPARATOR` between them."""
    held = ""
    for chunk in chunks:
        *ended, held = (held + chunk).split(SEPARATOR)
        for text in ended:
            yield from whole(text)
        # What lies behind a cut may still turn out to be a separator.
        while (cut := _cut(held)) is not None and len(held) > cut + len(SEPARATOR):
            yield Stretch(held[:cut], True)
            held = held[cut:]
    yield from whole(held)


def without_empty(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Leaves out documents of nothing but white space."""
    inside = False
    for stretch in stretches:
        if inside or stretch.more or stretch.text.strip():
            yield stretch
        inside = stretch.more


def nearest_cut(text: str, place: int, within: int = 4096) -> int:
    """The place nearest to `place` that no tokenizer notices; `place` where none is near."""
    around = [cut.start() for cut in _SAFE.finditer(text, max(1, place - within), place + within)]
    return min(around, key=lambda cut: abs(cut - place), default=place)


def _cut(text: str) -> int | None:
    if len(text) <= STRETCH:
        return None
    place = _SAFE.search(text, STRETCH, LONGEST)
    if place is not None:
        return place.start()
    return LONGEST if len(text) > LONGEST else None
