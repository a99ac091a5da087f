"""Every piece of Tiny Town's language, so that a word tokenizer knows them all beforehand."""

from llm.data.tinytown import words
from llm.data.tinytown.world import World
from llm.tokenizer.pieces import pieces_of

#: The pieces of story.py and talk.py themselves; those with a capital also begin lines or speech.
GLUE = """
 a about afternoon ago along am an and are ask asleep best busy but came circles colour day do
 does dreamed eat evening favourite feed fell fine found friend funny gave had happy has have he
 helped her hid him his hungry in is it job jokes know last like likes lit live lived lives long
 looked lost love lovely many me met model moon more morning must my no not nothing now of or
 people pet play plus put quiet ran said sang shared she sneezed so some song story sunny tell
 thank the thought time tiny tired to together told town upon wanted was welcome went who windy
 with wore works would yawned you fire rose up as called did find first
 Ask At Does Everybody He Hello Her His How I In No Nobody Not Once One She Soon Tell Thank
 The Then Tiny Town What When Where Who Yes You
"""
#: Pieces that have no space before them.
STARTS = ["\n", *'! " , . : ? A Here I Look My Not Once One Q Thank What Where'.split()]


def vocabulary(world: World) -> list[str]:
    """Pieces of every document of `world`, sorted, without the end of a document."""
    phrases = [' "', *STARTS, *(f" {number}" for number in range(1, 19))]
    phrases += [" " + word for word in GLUE.split()]
    for person in world.people.values():
        phrases += [person.name, person.names]
    for deck in (words.COLOURS, words.PETS, words.JOBS, words.HOMES, words.FOODS):
        phrases += deck
    phrases += [*words.CLOTHES, *words.ADVERBS]
    for place in world.domains:
        phrases += [place.name, place.to, place.at, *place.things, *place.spots]
        phrases += [part for pair in place.gathered for part in pair]
        phrases += [*place.doings, *place.scenes]
    return sorted({piece for phrase in phrases for piece in pieces_of(phrase)})
