"""What people do in a story: find, give, put, look for, hide, gather, say.

Each function is a program in the sense of program.py that writes one sentence behind its subject
and notes in the `Story` what follows from it.
"""

from llm.data.tinytown.program import Program, pick, say
from llm.data.tinytown.state import Story, Style, Thing, adverbs, evenly
from llm.data.tinytown.words import CLOTHES, COLOURS
from llm.data.tinytown.world import Person, a

#: Nobody gathers more, so that sums stay within what is asked elsewhere.
MOST = 18


def action(style: Style, story: Story, person: Person) -> Program:
    """What one person does; the subject has been written."""
    name, domain = person.name, story.domain
    others, held = story.others(name), story.held(name)
    lost = [thing for thing in story.things if thing.spot] or story.hidden
    count = story.counts.get(name)
    options = [(doing, story.fresh(doing, 0.35)) for doing in domain.doings]
    options += [(" said,", story.fresh(name + " said", 0.5))]
    options += [(" wore", story.fresh(name + " wore", 0.3))]
    if len(story.things) < min(len(domain.things), len(COLOURS)):
        options.append((" found", (2.4, 1.0, 0.5, 0.3, 0.3)[len(story.things)]))
    if held:
        options.append((" put the", 1.2))
    if held and others:
        options.append((" gave the", 1.8))
    if others:
        options += [(" hid", 0.4), (" shared some", story.fresh(name + " shared", 0.4))]
    options.append((" looked", 1.6 if lost else 0.2))
    if count:
        if count[2] < MOST:
            options.append((count[0], 0.9))
        if count[2] >= 4:
            options.append((" lost", 0.5))
    else:
        options += evenly(sorted({verb for verb, _ in domain.gathered}), 0.9)
    verb = yield pick(tuple(options), "plan")
    match verb:
        case " found":
            yield from find(story, name)
        case " put the":
            thing = yield from _one_of(held)
            thing.holder, thing.spot = None, (yield pick(evenly(list(domain.spots))))
            yield say(".")
        case " gave the":
            thing = yield from _one_of(held)
            yield say(" to")
            thing.holder = yield pick(evenly(others), "plan", "copy")
            yield say(".")
            story.cue = ("gave", name, thing.holder)
        case " hid":
            story.hidden[name] = yield pick(evenly(list(domain.spots)))
            yield say(".")
            story.topic, story.cue = None, ("hid", name)
        case " looked":
            yield from look(story, name)
        case " said,":
            story.used.add(name + " said")
            yield from speech(person)
        case " wore":
            story.used.add(name + " wore")
            yield say(person.her, "agreement")
            yield say(person.colour, "fact")
            yield pick(evenly(CLOTHES), "style")
            yield say(".")
        case " shared some":
            story.used.add(name + " shared")
            yield say(person.food, "fact")
            yield say(" with")
            yield pick(evenly(others), "plan", "copy")
            yield say(".")
        case " lost":
            yield from lose(story, person)
        case _ if verb in domain.doings:
            story.used.add(verb)
            yield from manner(style, story, person)
        case _:
            yield from gather(story, person, verb)


def _one_of(things: list[Thing]) -> Program:
    """The colour picks a thing (no two of a story share one), the noun follows."""
    colour = yield pick(evenly([thing.colour for thing in things]), "plan", "tracking")
    thing = next(thing for thing in things if thing.colour == colour)
    yield say(thing.noun, "copy")
    return thing


def find(story: Story, name: str) -> Program:
    """ "… found a red kite behind the wall."."""
    colours = [c for c in COLOURS if c not in [thing.colour for thing in story.things]]
    nouns = [n for n in story.domain.things if n not in [thing.noun for thing in story.things]]
    found = yield pick(evenly([a(colour) for colour in colours]))
    colour = found[found.rindex(" ") :]
    noun = yield pick(evenly(nouns))
    yield pick(evenly(list(story.domain.spots)))
    yield say(".")
    story.things.append(Thing(colour, noun, finder=name, holder=name))
    story.cue = ("found", name, colour, noun)


def look(story: Story, seeker: str) -> Program:
    """ "… looked behind the wall and found Tom.", or "but found nothing."."""

    def hiding(spot: str) -> list[str]:
        return [name for name, where in story.hidden.items() if where == spot]

    spots = story.domain.spots
    spot = yield pick(tuple((s, 2.0 if story.at(s) or hiding(s) else 0.25) for s in spots))
    things, people = story.at(spot), hiding(spot)
    if not things and not people:
        yield say(" but", "tracking")
        yield say(" found nothing.")
        return
    yield say(" and", "tracking")
    yield say(" found")
    texts = [" the" + thing.text for thing in things] + people
    found = yield pick(evenly(texts), "plan", "tracking", "tracking")
    yield say(".")
    if found in story.hidden:
        del story.hidden[found]
        story.cue = ("met", found, seeker)
    for thing in things:
        if found == " the" + thing.text:
            thing.holder, thing.spot = seeker, None


SPEECHES = (
    ("My favourite colour is", 1.0),
    ("I must feed my", 1.0),
    ("I would love some", 1.0),
    ('What a lovely day!"', 0.6),
)


def speech(person: Person) -> Program:
    """'… said, "My favourite colour is red."'."""
    yield say(' "')
    words = yield pick(SPEECHES, "style")
    known = {
        "My favourite colour is": person.colour,
        "I must feed my": person.pet,
        "I would love some": person.food,
    }
    if words in known:
        yield say(known[words], "fact")
        yield say('."')


def gather(story: Story, person: Person, verb: str) -> Program:
    """ "… picked 3 apples." or, later, "… picked 2 more, so now she had 5 apples."."""
    if person.name not in story.counts:
        number = yield pick(evenly([f" {n}" for n in range(2, 7)]))
        nouns = [noun for v, noun in story.domain.gathered if v == verb]
        noun = yield pick(evenly(nouns), "plan", "grammar")
        yield say(".")
        story.counts[person.name] = (verb, noun, int(number))
        story.cue = ("has", person.name, number, noun)
        return
    _, noun, before = story.counts[person.name]
    more = yield pick(evenly([f" {n}" for n in range(1, min(5, MOST - before) + 1)]))
    total = before + int(more)
    yield say(" more, so now")
    yield from _had(person, total)
    yield say(noun, "copy")
    yield say(".")
    story.counts[person.name] = (verb, noun, total)


def lose(story: Story, person: Person) -> Program:
    """ "… lost 2 of the apples, so now she had 3 apples."; two at least remain."""
    verb, noun, before = story.counts[person.name]
    fewer = yield pick(evenly([f" {n}" for n in range(1, min(4, before - 1))]), "plan")
    left = before - int(fewer)
    yield say(" of the")
    yield say(noun, "copy")
    yield say(", so now")
    yield from _had(person, left)
    yield say(noun, "copy")
    yield say(".")
    story.counts[person.name] = (verb, noun, left)


def _had(person: Person, number: int) -> Program:
    yield say(person.she, "agreement")
    yield say(" had")
    yield say(f" {number}", "arithmetic")


def manner(style: Style, story: Story, person: Person) -> Program:
    """How, or with whom: the end of a sentence about a doing."""
    others = story.others(person.name)
    options = [(".", 2.0), *adverbs(style, story, 2.0)]
    if others:
        options += [(" with", 1.0), (", and", 0.7)]
    mark = yield pick(tuple(options), "style")
    if mark == " with":
        yield pick(evenly(others), "plan", "copy")
    elif mark == ", and":
        yield pick(evenly(others), "plan", "copy")
        yield say(" helped")
        yield say(" her" if person.woman else " him", "agreement")
    if mark != ".":
        yield say(".")
