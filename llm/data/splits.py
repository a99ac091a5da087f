"""Which documents are held out: decided by the hash of each, so the same on every machine."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from llm.data.corpus import Document
from llm.data.texts import Stretch


def split_documents(read: Callable[[], Iterator[Stretch]], fraction: float) -> Iterator[Document]:
    """Hold out by hash of the text, so that adding documents moves none from side to side.

    A corpus of one document is cut instead, the end held out. Of a few documents, none may hash
    below the fraction: then the one with the smallest hash is held out (and the one with the
    largest is kept, where all would be). To know, the beginning is read twice, up to where both
    sides have a document; a corpus of one document is read twice to its end.

    Args:
        read: the texts, from the first one on, each time it is called
        fraction: share held out
    """
    found = _survey(read(), fraction)
    if found.documents == 1:
        yield from _cut_in_two(read(), int(found.characters * (1 - fraction)))
        return
    index, inside, split = -1, False, ""
    for stretch in read():
        if not inside:
            index += 1
            held_out = (_place(stretch.text) < fraction) != (index == found.moved)
            split = "val" if held_out else "train"
        inside = stretch.more
        yield Document(stretch.text, split, stretch.more)


class _Survey(NamedTuple):
    documents: int  # 2 where there are more than one
    characters: int  # of the first
    moved: int | None  # index of the one document that changes sides


def _survey(stretches: Iterator[Stretch], fraction: float) -> _Survey:
    documents = characters = 0
    lowest, highest = (2.0, -1), (-1.0, -1)  # place and index
    inside = False
    for stretch in stretches:
        if not inside:
            place = _place(stretch.text)
            lowest = min(lowest, (place, documents))
            highest = highest if place <= highest[0] else (place, documents)
            documents += 1
            if lowest[0] < fraction <= highest[0]:
                return _Survey(2, 0, None)
        inside = stretch.more
        if documents == 1:
            characters += len(stretch.text)
    moved = lowest[1] if lowest[0] >= fraction else highest[1]
    return _Survey(min(documents, 2), characters, moved)


def _cut_in_two(stretches: Iterator[Stretch], cut: int) -> Iterator[Document]:
    done, split = 0, "train"
    for text, more in stretches:
        if split == "train" and done + len(text) >= cut:
            yield Document(text[: cut - done], "train")
            split, text = "val", text[cut - done :]
        done += len(text)
        yield Document(text, split, more)


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on the first stretch of a long one."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
