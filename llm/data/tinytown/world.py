"""Who lives in Tiny Town and what is true of them in every document."""

from dataclasses import dataclass

from llm.data.seeds import shuffled
from llm.data.tinytown.words import (
    COLOURS,
    DOMAINS,
    FOODS,
    HOMES,
    JOBS,
    MEN,
    PETS,
    WOMEN,
    Domain,
)


@dataclass(frozen=True)
class Person:
    """One inhabitant; phrases stand as in a text, with the space before them."""

    name: str
    woman: bool
    colour: str
    pet: str
    job: str
    home: str
    food: str
    friend: str

    @property
    def names(self) -> str:
        """The possessive: " Mia's"."""
        return self.name + "'s"

    @property
    def she(self) -> str:
        return " she" if self.woman else " he"

    @property
    def She(self) -> str:
        return " She" if self.woman else " He"

    @property
    def her(self) -> str:
        """The possessive pronoun: " her" or " his"."""
        return " her" if self.woman else " his"

    @property
    def Her(self) -> str:
        return " Her" if self.woman else " His"


def a(word: str) -> str:
    """`word` behind its article: " a cat", " an owl"."""
    return (" an" if word.lstrip()[0] in "aeiou" else " a") + word


@dataclass(frozen=True)
class World:
    """People by name, in a fixed order, and the domains that stories can happen in."""

    people: dict[str, Person]
    domains: tuple[Domain, ...]


def make_world(seed: int, people: int, domains: int) -> World:
    """The world of `seed`: half women, half men, friends in pairs, facts dealt like cards.

    Dealing from shuffled decks, instead of drawing, lets every colour, pet, … be true of as many
    people as any other (give or take one), so that no answer is a good guess.
    """
    women = iter(shuffled(WOMEN, seed, "women") + _invented(seed, "a", people))
    men = iter(shuffled(MEN, seed, "men") + _invented(seed, "o", people))
    names = [(" " + next(women if i % 2 == 0 else men), i % 2 == 0) for i in range(people)]

    def dealt(deck: list[str], what: str) -> list[str]:
        rounds = -(-people // len(deck))
        return [card for turn in range(rounds) for card in shuffled(deck, seed, what, turn)]

    circle = shuffled([name for name, _ in names], seed, "friends")
    friends = {name: circle[min(place ^ 1, people - 1)] for place, name in enumerate(circle)}
    if people % 2:  # the last one has nobody left to pair with
        friends[circle[-1]] = circle[0]
    colours, pets, jobs = dealt(COLOURS, "colour"), dealt(PETS, "pet"), dealt(JOBS, "job")
    homes, foods = dealt(HOMES, "home"), dealt(FOODS, "food")
    folk = {
        name: Person(
            name=name,
            woman=woman,
            colour=colours[i],
            pet=pets[i],
            job=jobs[i],
            home=homes[i],
            food=foods[i],
            friend=friends[name],
        )
        for i, (name, woman) in enumerate(names)
    }
    return World(folk, DOMAINS[:domains])


def _invented(seed: int, ending: str, people: int) -> list[str]:
    """Names beyond the lists, such as "Belida": women's end in -a and men's in -o."""
    if people <= 2 * len(MEN):
        return []
    heads = [c + v for c in "BDFGKLMNPRSTVZ" for v in "aeiou"]
    tails = [c + v + d for c in "bdlmnrstv" for v in "aeiou" for d in "dlmnrstv"]
    names = [head + tail + ending for head in heads for tail in tails]
    return shuffled(names, seed, "invented", ending)
