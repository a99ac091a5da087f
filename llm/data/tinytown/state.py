"""What a reader of a story knows: all that its program remembers, and it follows from the text."""

from dataclasses import dataclass, field

from llm.data.tinytown.words import ADVERBS, Domain


@dataclass
class Style:
    """The knobs of a story."""

    min_events: int
    max_events: int
    noise: float


@dataclass
class Thing:
    """Something found: held by a person or lying at a spot, never both."""

    colour: str
    noun: str
    finder: str
    holder: str | None
    spot: str | None = None

    @property
    def text(self) -> str:
        return self.colour + self.noun


@dataclass
class Story:
    """What a reader of the story knows."""

    domain: Domain
    people: list[str]  # in order of appearance
    topic: str | None = None  # whom "she" or "he" means: the subject of the last sentence
    things: list[Thing] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)  # who hides where
    counts: dict[str, tuple[str, str, int]] = field(default_factory=dict)  # verb, noun, number
    used: set[str] = field(default_factory=lambda: {" Then"})  # what would be odd to tell now
    cue: tuple[str, ...] | None = None  # what somebody may say to the last sentence

    def fresh(self, text: str, weight: float) -> float:
        """`weight`, or little of it if `text` has been told before."""
        return weight * 0.05 if text in self.used else weight

    @property
    def visible(self) -> list[str]:
        return [name for name in self.people if name not in self.hidden]

    def others(self, name: str) -> list[str]:
        return [other for other in self.visible if other != name]

    def held(self, name: str) -> list[Thing]:
        return [thing for thing in self.things if thing.holder == name]

    def at(self, spot: str) -> list[Thing]:
        return [thing for thing in self.things if thing.spot == spot]


def evenly(texts: list[str], total: float = 1.0) -> tuple[tuple[str, float], ...]:
    """Options of equal weight that add up to `total`."""
    return tuple((text, total / len(texts)) for text in texts)


def adverbs(style: Style, story: Story, total: float) -> tuple[tuple[str, float], ...]:
    """Words of manner: the domain's own, and with probability `noise` any."""
    weights = dict.fromkeys(ADVERBS, style.noise * total / len(ADVERBS)) if style.noise else {}
    preferred = story.domain.adverbs
    scale = (1.0 - style.noise) * total / (len(preferred) * (len(preferred) + 1) / 2)
    for place, adverb in enumerate(preferred):
        weights[adverb] = weights.get(adverb, 0.0) + scale * (len(preferred) - place)
    return tuple((adverb, weight) for adverb, weight in weights.items() if weight > 0)
