"""One program, two drivers: a generator of text that writes with `draw` and reads with `read`.

A program is a Python generator that yields steps, `say(...)` or `pick(...)`, and is sent the text
that was picked. `draw` picks at random and so samples; `read` picks what stands in a given text
and so scores it. They run the same program, so that they cannot disagree.

The probability of the next piece is exact because nothing is hidden: a decision is made piece by
piece at the moment when each piece appears. `pick` takes whole phrases and merges those that begin
alike into a prefix tree, so that " in the barn" and " in the boat" become a decision on " in the"
with their added weights and then one between " barn" and " boat". What the program remembers must
come from the text alone; being sent nothing but picked text, it cannot know more.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Generator
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from llm.data.corpus import Outside
from llm.tokenizer.pieces import pieces_of

#: What a piece asks of its reader.
SKILLS = [
    "style",  # free: a turn of phrase, scenery, manners
    "plan",  # free: who, what, where comes next
    "grammar",  # given by the last few words
    "agreement",  # she or he, her or his: given by whom it is about
    "copy",  # was said before in this document
    "tracking",  # follows from all that has happened to a thing or a person
    "fact",  # holds in every document of this world
    "arithmetic",  # follows from numbers said before
]
_SKILL = {name: number for number, name in enumerate(SKILLS)}


class Say:
    """Pieces without an alternative: they cost nothing if one knows why they must come."""

    __slots__ = ("nats", "pieces", "skills")

    def __init__(self, text: str, skill: str):
        self.pieces = tuple(pieces_of(text))
        self.skills = (_SKILL[skill],) * len(self.pieces)
        self.nats = (0.0,) * len(self.pieces)


class Fork:
    """A decision on one piece; `after[i]` is the next decision, or the whole text picked."""

    __slots__ = ("after", "bounds", "index", "nats", "pieces", "skill", "total")

    def __init__(self, branches: dict, skill: str, forced: str, rest: str):
        self.pieces = list(branches)
        weights = [weight for weight, _ in branches.values()]
        self.bounds = list(accumulate(weights))  # plain additions: `sum` differs by version
        self.total = self.bounds[-1]
        self.nats = [-math.log(w / self.total) if len(weights) > 1 else 0.0 for w in weights]
        self.skill = _SKILL[skill if len(weights) > 1 else forced]
        self.index = {piece: number for number, piece in enumerate(self.pieces)}
        self.after = [
            Fork(after, skill, rest, rest) if isinstance(after, dict) else after
            for _, after in branches.values()
        ]


#: Yields steps, is sent the text picked (None after `say`), returns what it has learnt. `Any`
#: because what is sent depends on the step.
Program = Generator[Say | Fork, Any, Any]


@lru_cache(maxsize=16384)
def say(text: str, skill: str = "grammar") -> Say:
    """A step that writes `text`; `skill` is what one needs to know that it must come."""
    return Say(text, skill)


def pick(
    options: tuple[tuple[str, float], ...],
    skill: str = "plan",
    forced: str = "tracking",
    rest: str = "grammar",
) -> Fork:
    """A step that writes one of `options` (text and weight each) and returns its text.

    `skill` tags the pieces on which a choice is left. `forced` tags the first piece where there
    was none to begin with, `rest` every piece that those before it have decided. Raises
    ValueError if an option is the beginning of another one: the end of a choice must be visible.
    """
    if len(options) > _CACHED_OPTIONS:
        return _fork(options, skill, forced, rest)
    return _cached_fork(options, skill, forced, rest)


#: Longer choices (the names of a large world) are made anew each time, lest they fill the memory.
_CACHED_OPTIONS = 64


def _fork(options: tuple[tuple[str, float], ...], skill: str, forced: str, rest: str) -> Fork:
    tree: dict = {}
    for text, weight in options:
        if not weight > 0:
            raise ValueError(f"{text!r} has weight {weight}")
        pieces = pieces_of(text) or [""]
        node = tree
        for piece in pieces[:-1]:
            mass, after = node.get(piece, (0.0, {}))
            if not isinstance(after, dict):
                raise ValueError(f"{after!r} is the beginning of {text!r}")
            node[piece] = (mass + weight, after)
            node = after
        if pieces[-1] in node:
            raise ValueError(f"{text!r} is the beginning of another option, or is there twice")
        node[pieces[-1]] = (weight, text)
    return Fork(tree, skill, forced, rest)


_cached_fork = lru_cache(maxsize=8192)(_fork)


class Drawn(NamedTuple):
    """What a program wrote: pieces (the last is "", the end), and nats and skill of each."""

    pieces: list[str]
    nats: list[float]
    skills: list[int]


def draw(program: Program, uniform: Callable[[], float]) -> Drawn:
    """Run `program`, picking at random; `uniform` returns numbers in [0, 1)."""
    pieces: list[str] = []
    nats: list[float] = []
    skills: list[int] = []
    picked = None
    try:
        while True:
            step = program.send(picked)
            if step.__class__ is Say:
                pieces += step.pieces
                nats += step.nats
                skills += step.skills
                picked = None
                continue
            while step.__class__ is Fork:
                number = 0
                if len(step.pieces) > 1:
                    number = bisect_right(step.bounds, uniform() * step.total)
                    number = min(number, len(step.pieces) - 1)  # u · total may round up to total
                pieces.append(step.pieces[number])
                nats.append(step.nats[number])
                skills.append(step.skill)
                step = step.after[number]
            picked = step
    except StopIteration:
        return Drawn(pieces, nats, skills)


def read(program: Program, text: str) -> tuple[Drawn, Outside | None]:
    """Run `program` along `text`; where it cannot follow, `Outside` says where and why."""
    given = pieces_of(text)
    given.append("")
    nats: list[float] = []
    skills: list[int] = []
    at = 0
    picked = None

    def outside(expected: list[str]) -> tuple[Drawn, Outside]:
        position = sum(map(len, given[:at]))
        return Drawn(given[:at], nats, skills), Outside(position, given[at], expected[:8])

    try:
        while True:
            step = program.send(picked)
            if step.__class__ is Say:
                for piece in step.pieces:
                    if given[at] != piece:
                        return outside([piece])
                    at += 1
                    nats.append(0.0)
                    skills.append(step.skills[0])
                picked = None
                continue
            while step.__class__ is Fork:
                number = step.index.get(given[at])
                if number is None:
                    likeliest = sorted(range(len(step.pieces)), key=step.nats.__getitem__)
                    return outside([step.pieces[i] for i in likeliest])
                at += 1
                nats.append(step.nats[number])
                skills.append(step.skill)
                step = step.after[number]
            picked = step
    except StopIteration:
        return Drawn(given, nats, skills), None
