"""Documents as a stream of stretches, so that none of them has to fit in memory."""

import re
from collections import Counter
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


def whole(chunks: Iterable[str]) -> Iterator[Stretch]:
    """One document that comes in chunks, as stretches."""
    held, at = "", 0
    for chunk in chunks:
        held, at = held[at:] + chunk, 0
        while (cut := _cut(held, at)) is not None:
            yield Stretch(held[at:cut], True)
            at = cut
    yield Stretch(held[at:])


def separated(chunks: Iterable[str]) -> Iterator[Stretch]:
    """The documents in a text that comes in chunks, with `SEPARATOR` between them."""
    held = ""
    for chunk in chunks:
        *ended, held = (held + chunk).split(SEPARATOR)
        for text in ended:
            yield from whole([text])
        at = 0
        # What lies behind a cut may still turn out to be a separator.
        while (cut := _cut(held, at)) is not None and len(held) > cut + len(SEPARATOR):
            yield Stretch(held[at:cut], True)
            at = cut
        held = held[at:]
    yield from whole([held])


def without_empty(stretches: Iterable[Stretch], counts: Counter[str]) -> Iterator[Stretch]:
    """Leaves out documents of nothing but white space, which are counted as "empty"."""
    inside = False
    for stretch in stretches:
        if inside or stretch.more or stretch.text.strip():
            yield stretch
        else:
            counts["empty"] += 1
        inside = stretch.more


def nearest_cut(text: str, place: int, within: int = 4096) -> int:
    """The place nearest to `place` that no tokenizer notices; `place` where none is near."""
    around = [cut.start() for cut in _SAFE.finditer(text, max(1, place - within), place + within)]
    return min(around, key=lambda cut: abs(cut - place), default=place)


def _cut(text: str, at: int) -> int | None:
    """Where the stretch that begins at `at` ends; None where all of the rest may belong to it."""
    if len(text) - at <= STRETCH:
        return None
    place = _SAFE.search(text, at + STRETCH, at + LONGEST)
    if place is not None:
        return place.start()
    return at + LONGEST if len(text) - at > LONGEST else None
