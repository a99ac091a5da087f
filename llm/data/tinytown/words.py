"""The words of Tiny Town: names, things and what can be said of them.

Every phrase is written with the space before it, as it stands in a text. Phrases that compete at
one place (the activities of a domain and the verbs of story.py, say) must not begin one another;
`pick` refuses those that do.
"""

from dataclasses import dataclass

WOMEN = """Mia Anna Lucy Nora Clara Emma Julia Sara Alice Ruth Ella Maya Ida Flora Tilda Greta
Paula Wanda Zoe Olga Hanna Vera Martha Stella Nina Amy Cora Linda Dora Eva Frida Gwen Iris Jenny
Kate Laura Molly Polly Sofia Tess""".split()

MEN = """Tom Ben Leo Max Sam Paul Oscar Jack Felix Hugo Adam Noah Peter Finn Otto Simon Theo Karl
Emil Louis Marco Nils Omar Ravi Toby Victor Walter Yuri Anton Boris David Erik Fred George Henry
Ivan Jonas Kenji Milo Rico""".split()

COLOURS = " red, blue, green, yellow, white, black, pink, orange, silver, purple".split(",")

PETS = " dog, cat, rabbit, parrot, goat, owl, hamster, turtle, pony, hen, mouse, duck".split(",")

JOBS = (
    " baker, sailor, teacher, painter, doctor, artist, tailor, singer, carpenter, pilot,"
    " gardener, engineer"
).split(",")

HOMES = (
    " in a lighthouse, on a houseboat, above the bakery, by the river, in a windmill,"
    " near the station, in a treehouse, behind the museum, at the harbour, in a castle,"
    " over the bridge, next to the school"
).split(",")

FOODS = (
    " cheese, honey, soup, bread, chocolate, porridge, salad, popcorn, pudding, rice, jam,"
    " ice cream"
).split(",")

CLOTHES = " hat, coat, scarf, boots".split(",")

#: Words of manner. At every place for one each domain prefers a few; `noise` draws from all.
ADVERBS = (
    " softly, gently, brightly, slowly, quietly, happily, merrily, loudly, proudly, carefully,"
    " cheerfully, lazily, warmly, calmly"
).split(",")


@dataclass(frozen=True)
class Domain:
    """One place of the town with its own words, for experts to specialise in."""

    name: str  # after "a story about"
    to: str  # after "went"
    at: str  # after "is"
    things: tuple[str, ...]  # what is found, given and put somewhere
    spots: tuple[str, ...]  # where things and people can be hidden
    gathered: tuple[tuple[str, str], ...]  # what is counted, each with its verb
    doings: tuple[str, ...]  # what people do there
    scenes: tuple[str, ...]  # what else goes on there, after " The"
    adverbs: tuple[str, ...]  # in the order of preference


def _domain(**words: str) -> Domain:
    """A `Domain` from lists with semicolons."""

    def listed(key: str) -> tuple[str, ...]:
        return tuple(" " + item.strip() for item in words[key].split(";"))

    pairs = (item.rsplit(" ", 1) for item in listed("gathered"))
    return Domain(
        name=" " + words["name"],
        to=" " + words["to"],
        at=" " + words["at"],
        things=listed("things"),
        spots=listed("spots"),
        gathered=tuple((verb, " " + noun) for verb, noun in pairs),
        doings=listed("doings"),
        scenes=listed("scenes"),
        adverbs=listed("adverbs"),
    )


DOMAINS = (
    _domain(
        name="the garden",
        to="to the garden",
        at="in the garden",
        things="spade; basket; rake; bucket; glove",
        spots="under the bench; behind the shed; beside the pond; among the roses",
        gathered="picked apples; caught snails; planted bulbs",
        doings="watered the tomatoes; smelled the lilies; chased a butterfly; danced on the lawn",
        scenes="bees hummed; roses swayed; frogs croaked",
        adverbs="gently; softly; happily; lazily; brightly",
    ),
    _domain(
        name="the kitchen",
        to="to the kitchen",
        at="in the kitchen",
        things="spoon; bowl; kettle; cup; apron",
        spots="under the table; beside the stove; in the cupboard; behind the curtain",
        gathered="baked cookies; washed plums; peeled onions",
        doings="stirred the batter; kneaded the dough; tasted the sauce; polished a plate",
        scenes="oven glowed; pots bubbled; toast smoked",
        adverbs="warmly; merrily; slowly; carefully; softly",
    ),
    _domain(
        name="the sea",
        to="to the sea",
        at="by the sea",
        things="net; bottle; oar; rope; anchor",
        spots="under the pier; behind the rocks; inside the cave; in the rowing boat",
        gathered="collected shells; caught crabs; counted dolphins",
        doings="swam in the waves; built a sandcastle; waved to a ship; dived for pearls",
        scenes="waves rolled; gulls cried; tide rose",
        adverbs="loudly; slowly; calmly; merrily; proudly",
    ),
    _domain(
        name="the workshop",
        to="to the workshop",
        at="in the workshop",
        things="hammer; saw; drill; ruler; wrench",
        spots="under the ladder; behind the door; in the drawer; beside the toolbox",
        gathered="sorted nails; carried planks; cleaned bolts",
        doings="sanded a chair; mended the clock; swept the floor; oiled a wheel",
        scenes="fire crackled; clock ticked; machines whirred",
        adverbs="carefully; proudly; quietly; loudly; warmly",
    ),
    _domain(
        name="the market",
        to="to the market",
        at="at the market",
        things="drum; mug; lamp; umbrella; candle",
        spots="behind the stall; beside the fountain; under the cart; in the barrel",
        gathered="bought pears; sold buns; earned coins",
        doings="tried the olives; listened to a fiddler; bargained for a carpet; juggled melons",
        scenes="crowd laughed; bells rang; music played",
        adverbs="loudly; cheerfully; merrily; happily; brightly",
    ),
    _domain(
        name="the hill",
        to="up the hill",
        at="on the hill",
        things="kite; telescope; balloon; map; whistle",
        spots="under the oak; behind the wall; beside the tower; in the tall grass",
        gathered="gathered daisies; spotted clouds; counted swallows",
        doings="rolled in the clover; painted the view; watched an eagle; flew a paper plane",
        scenes="wind whistled; clouds drifted; sun shone",
        adverbs="brightly; gently; proudly; calmly; lazily",
    ),
    _domain(
        name="the forest",
        to="into the forest",
        at="in the forest",
        things="axe; lantern; compass; tent; flute",
        spots="under the pine; beside the stream; behind the log; in the hollow tree",
        gathered="picked mushrooms; collected acorns; followed tracks",
        doings="climbed a birch; whistled to the finches; crossed the brook; rested on the moss",
        scenes="leaves rustled; owls hooted; deer listened",
        adverbs="quietly; softly; slowly; gently; calmly",
    ),
    _domain(
        name="the farm",
        to="to the farm",
        at="at the farm",
        things="saddle; fork; wagon; horseshoe; broom",
        spots="in the barn; behind the haystack; beside the gate; under the tractor",
        gathered="dug turnips; collected eggs; loaded pumpkins",
        doings="fed the pigs; brushed a horse; milked the cow; sheared a sheep",
        scenes="rooster crowed; cows mooed; lambs jumped",
        adverbs="happily; loudly; cheerfully; lazily; proudly",
    ),
)
