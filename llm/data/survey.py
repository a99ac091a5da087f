"""How much of a text the hashes hold out, and what changes sides where that is too far off.

A survey keeps the key and the size of each document, on disk. It ends where the share is certain:
a corpus of very many documents is known from its beginning.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from llm.data.account import counted, size
from llm.data.duplicates import parted
from llm.data.progress import bar
from llm.data.texts import Stretch, nearest_cut

#: How far the held-out bytes may be from the fraction of all bytes, as a part of the smaller side.
TOLERANCE = 0.2
#: A survey ends where the smaller side has so many documents: that side's share of all the text to
#: come has a standard deviation of 7% of itself at most, as long as the text goes on as it began.
ENOUGH = 200
#: Bytes of the smaller part of a document that is cut for the share's sake.
SHORTEST = 32
#: Groups of copies that may change sides, in each of the parts that are looked at.
_MOVABLE = 1024
_RECORD = np.dtype([("key", "<u8"), ("bytes", "<i8")])


def key_of(text: str) -> int:
    """64 bits that depend on the text alone, on the first stretch of a long one."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def among(keys: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Those keys that are in one of the other columns, too."""
    known = np.unique(np.concatenate(others))
    if not len(known):
        return known
    return keys[known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys]


def is_off(held: float, total: float, fraction: float, tolerance: float = TOLERANCE) -> bool:
    """Whether another share of the bytes is held out than was asked for."""
    return abs(held - fraction * total) > tolerance * min(fraction, 1 - fraction) * total


class Moves(NamedTuple):
    """Which documents do not go where their hash says; JSON can carry it.

    kept: of a document's key, in hexadecimal, how many characters are trained on, null for all
    described: whether the corpus's description has to say so. It does not where every version of
        the code made the same of this text.
    note: for the account of the preparation
    complete: whether all of the text was seen
    """

    kept: dict[str, int | None]
    described: bool = False
    note: str = ""
    complete: bool = True


class Group(NamedTuple):
    """A document and its copies."""

    name: str  # the key
    held: bool  # by its hash
    n_documents: int
    n_bytes: int  # of all of them

    @property
    def size(self) -> int:
        return self.n_bytes // self.n_documents


class Survey:
    """A pass over the text, or over its beginning.

    Args:
        read: the texts, from the first one on
        fraction: share that is to be held out
        complete: whether the pass has to see all of it
    Attributes:
        complete: whether it did
    """

    def __init__(self, read: Callable[[], Iterator[Stretch]], fraction: float, complete: bool):
        self.read, self.fraction, self.complete = read, fraction, True
        self.total = self.held = self.n_characters = 0
        parts = parted(self._records(complete), _RECORD)
        groups = [group for part in parts for group in self._groups(part)]
        self.groups = sorted(groups, key=lambda group: (-group.n_bytes, group.name))

    def _records(self, complete: bool) -> Iterator[bytes]:
        smaller, squares = min(self.fraction, 1 - self.fraction), 0
        key, n_bytes, inside = 0, 0, False
        with bar("held-out text") as progress:
            for text, more in self.read():
                if not inside:
                    key, n_bytes = key_of(text), 0
                n_bytes, inside = n_bytes + _size(text), more
                self.n_characters += len(text)
                if more:
                    continue
                yield key.to_bytes(8, "little") + n_bytes.to_bytes(8, "little")
                progress.update(n_bytes)
                self.total, squares = self.total + n_bytes, squares + n_bytes**2
                self.held += n_bytes if key / 2**64 < self.fraction else 0
                # Of unlike sizes, documents count as fewer (Kish's effective sample size).
                enough = smaller * self.total**2 >= ENOUGH * squares > 0
                if enough and not complete and not self._off(self.held, TOLERANCE / 2):
                    self.complete = False
                    return

    def _groups(self, records: np.ndarray) -> Iterator[Group]:
        """The largest ones, and those of the lowest and of the highest hash."""
        keys, group_R, n_documents = np.unique(
            records["key"], return_inverse=True, return_counts=True
        )
        n_bytes = np.bincount(group_R, records["bytes"]).astype(np.int64)
        largest = np.argsort(-n_bytes, kind="stable")[:_MOVABLE].tolist()
        for i in {*largest, 0, len(keys) - 1} if len(keys) else ():
            key = int(keys[i])
            held = key / 2**64 < self.fraction
            yield Group(f"{key:016x}", held, int(n_documents[i]), int(n_bytes[i]))

    def _off(self, held: float, tolerance: float = TOLERANCE) -> bool:
        return is_off(held, self.total, self.fraction, tolerance)

    @property
    def _near(self) -> float:
        """Bytes on which it does not depend."""
        return TOLERANCE / 2 * min(self.fraction, 1 - self.fraction) * self.total

    def moves(self) -> Moves:
        """What has to change sides, so that both have text, and as much as was asked for."""
        if not self.complete or not self.groups:
            return Moves({}, complete=self.complete)
        lowest = min(self.groups, key=lambda group: group.name)
        highest = max(self.groups, key=lambda group: group.name)
        start: dict[str, int | None] = {}
        kept, held, begin = start, self.held, self.held
        if lowest == highest:
            kept, held = self._cut_alone(lowest)
            start, begin = {lowest.name: None}, 0
        elif not held:  # of a few documents, none may hash below the fraction
            kept, held = {lowest.name: 0}, lowest.n_bytes
        elif held == self.total:
            kept, held = {highest.name: None}, held - highest.n_bytes
        # Earlier versions moved one document and left its copies where they were.
        described = any(g.name in kept and g.n_documents > 1 for g in self.groups)
        if not self._off(held) or not 0 < self.fraction < 1:
            return Moves(kept, described)
        balanced, now = self._balanced(start, begin)
        if balanced == start:
            balanced, now = kept, held
        return Moves(balanced, described or balanced != kept, self._note(balanced, now))

    def _cut_alone(self, only: Group) -> tuple[dict[str, int | None], int]:
        """Where one document is cut, by its characters; bytes then held out."""
        n_characters = left = int(self.n_characters // only.n_documents * (1 - self.fraction))
        n_bytes = n_characters
        if self.n_characters != self.total:
            n_bytes = 0
            for text in self._texts(only):
                n_bytes, left = n_bytes + _size(text[:left]), max(0, left - len(text))
        return {only.name: n_characters}, only.n_documents * (only.size - n_bytes)

    def _balanced(
        self, kept: dict[str, int | None], held: int
    ) -> tuple[dict[str, int | None], int]:
        """The largest documents of the side that has too much change sides, the last in part.

        Args:
            kept: of documents that do not go where their hash says
            held: bytes that are held out so
        """
        wanted, kept = self.fraction * self.total, dict(kept)
        too_much = held > wanted
        sides = [kept.get(group.name, 0 if group.held else None) == 0 for group in self.groups]
        for group, is_held in zip(self.groups, sides, strict=True):
            if is_held != too_much:
                continue
            gap = abs(held - wanted)
            if not self._off(held, TOLERANCE / 2):
                break
            if group.n_bytes <= gap + self._near:
                kept[group.name] = None if too_much else 0
                held += -group.n_bytes if too_much else group.n_bytes
                continue
            end = (group.n_bytes - gap if too_much else gap) / group.n_documents
            if SHORTEST <= end <= group.size - SHORTEST:
                kept[group.name], n_bytes = self._cut(group, end)
                held += group.n_documents * n_bytes - (group.n_bytes if too_much else 0)
        return kept, held

    def _cut(self, group: Group, end: float) -> tuple[int, int]:
        """Characters before and bytes behind a cut that has about `end` bytes behind it.

        Where no tokenizer notices, if such a place is near; never inside a character.
        """
        wanted, n_characters, n_bytes = group.size - end, 0, 0
        near = self._near / group.n_documents
        for text in self._texts(group):
            content = text.encode()
            if n_bytes + len(content) >= wanted:
                exact = len(content[: int(wanted) - n_bytes].decode(errors="ignore"))
                place = nearest_cut(text, exact)
                if abs(n_bytes + _size(text[:place]) - wanted) > near:
                    place = exact
                return n_characters + place, group.size - n_bytes - _size(text[:place])
            n_characters, n_bytes = n_characters + len(text), n_bytes + len(content)
        return n_characters, 0  # the shortest of those that begin alike for a stretch

    def _texts(self, group: Group) -> Iterator[str]:
        """The stretches of the first document of a group."""
        ours = inside = False
        for text, more in self.read():
            if not inside:
                ours = f"{key_of(text):016x}" == group.name
            inside = more
            if ours:
                yield text
                if not more:
                    return

    def _note(self, kept: dict[str, int | None], held: int) -> str:
        """What was done about the share, and whether it helped."""
        cut = [group.size for group in self.groups if kept.get(group.name)]
        moved = sum(g.n_documents for g in self.groups if kept.get(g.name, 1) in (0, None))
        parts = [f"{counted(moved, 'document')} changed sides"] if moved else []
        parts += [f"the end of a document of {size(n_bytes)} is held out" for n_bytes in cut]
        text = f"the hash alone would hold out {self.held / self.total:.1%}: {', '.join(parts)}"
        if self._off(held):
            text += f"; val_fraction={self.fraction:g} cannot be met with so little text"
        return text


def _size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
