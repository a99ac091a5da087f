"""The talk: questions about the story, the people of the town and sums, with their answers.

A turn is "Q: …\\nA: …\\n". A question may be anything sensible; its answer is determined, so that
an answer is right or wrong (a story that was asked for excepted).
"""

from llm.data.tinytown.program import Program, pick, say
from llm.data.tinytown.state import Story, Style, evenly
from llm.data.tinytown.story import OPENINGS, tell
from llm.data.tinytown.words import COLOURS, PETS
from llm.data.tinytown.world import Person, World, a

DIGITS = [f" {n}" for n in range(1, 10)]


def document(world: World, style: Style, questions: float, stories: float) -> Program:
    """A whole document: a story or a question, then questions for as long as they last.

    `stories` is the share of documents that begin with a story, `questions` the chance of one
    more question at every line's end. The end of the document is the piece "".
    """
    starts = [(text, weight * stories) for text, weight in OPENINGS] if stories else []
    if stories < 1.0:
        total = 0.0
        for _, weight in OPENINGS:
            total += weight
        starts.append(("Q", total * (1.0 - stories)))
    start = yield pick(tuple(starts), "plan", "grammar")
    story = None
    if start != "Q":
        story = yield from tell(world, style)
        if not (yield from _another(questions)):
            return
    first = True
    while True:
        yield say(":")
        story = yield from turn(world, style, story, first)
        first = False
        if not (yield from _another(questions)):
            return


def _another(questions: float) -> Program:
    options = [("", 1.0 - questions)] + ([("Q", questions)] if questions else [])
    return (yield pick(tuple(options), "plan", "grammar")) == "Q"


def turn(world: World, style: Style, story: Story | None, first: bool) -> Program:
    """A question after "Q:" and its answer; returns the story that is now the last one told."""
    stem = yield pick(_stems(story, first), "plan")
    match stem:
        case " Tell me":
            return (yield from request(world, style, story))
        case " Hello!" | " How are you?" | " Who are you?" | " Thank you!":
            yield say("\nA:")
            yield say(MANNERS[stem])
        case " What is":
            yield from what_is(world, story)
        case " Who is":
            yield from who_is(world, story)
        case " Where is":
            yield from where_is(world, story)
        case " Who has the" | " Who found the" | " What colour is the" if story:
            yield from about_thing(story, stem)
        case " How many" if story:
            yield from how_many(story)
        case " What did" if story:
            yield from what_found(story)
        case _:
            yield from about_person(world, story, stem)
    yield say("\n")
    return story


MANNERS = {
    " Hello!": " Hello! Ask me about the people of Tiny Town, or ask me to tell you a story.",
    " How are you?": " I am fine, thank you.",
    " Who are you?": " I am a tiny model of a tiny town.",
    " Thank you!": " You are welcome.",
}


def _stems(story: Story | None, first: bool) -> tuple[tuple[str, float], ...]:
    """How a question can begin, here."""
    options = [(" What is", 2.6), (" Who is", 1.2), (" Does", 0.7)]
    options += [(" Where does", 0.5), (" What pet does", 0.5), (" What does", 0.5)]
    options += [(" How are you?", 0.1), (" Who are you?", 0.1)]
    options += [(" Hello!", 0.3)] if first and story is None else [(" Thank you!", 0.15)]
    if story is None:
        return (*options, (" Tell me", 2.0), (" Where is", 0.3))
    options += [(" Tell me", 0.4), (" Where is", 3.0)]
    if story.things:
        options += [(" Who has the", 2.0), (" Who found the", 1.2), (" What colour is the", 0.8)]
        options.append((" What did", 1.2))
    if story.counts:
        options.append((" How many", 1.6))
    return tuple(options)


def _people(world: World, story: Story | None, suffix: str = "") -> tuple[tuple[str, float], ...]:
    """Anybody, and those of the story more often."""
    weights = dict.fromkeys(world.people, 1.0 / len(world.people))
    present = story.people if story else []
    for name in present:
        weights[name] += 1.0 / len(present)
    return tuple((name + suffix, weight) for name, weight in weights.items())


def request(world: World, style: Style, story: Story | None) -> Program:
    """ "Tell me a story.", "… a story about the sea.", "… about Mia."."""
    wish = yield pick(((" a story", 0.1 if story else 1.5), (" about", 0.4)))
    if wish == " about":
        name = yield pick(_people(world, story))
        yield say(".\nA:")
        yield from portrait(world.people[name])
        return story
    lead = domain = None
    if (yield pick(((".", 1.0), (" about", 1.0)), "plan")) == " about":
        places = evenly([place.name for place in world.domains])
        wanted = yield pick((*places, *evenly(list(world.people))))
        yield say(".")
        lead = wanted if wanted in world.people else None
        domain = next((place for place in world.domains if place.name == wanted), None)
    yield say("\nA:")
    yield pick(tuple((" " + text, weight) for text, weight in OPENINGS), "style")
    return (yield from tell(world, style, lead=lead, domain=domain))


def portrait(person: Person) -> Program:
    """ "Mia has a cat and likes honey. Her favourite colour is blue."."""
    yield say(person.name, "copy")
    yield say(" has")
    yield say(a(person.pet), "fact")
    yield say(" and likes")
    yield say(person.food, "fact")
    yield say(".")
    yield say(person.Her, "agreement")
    yield say(" favourite colour is")
    yield say(person.colour, "fact")
    yield say(".\n")


def what_is(world: World, story: Story | None) -> Program:
    """Sums, and somebody's job or favourite colour."""
    names = [(name + "'s", weight) for name, weight in _people(world, story)]
    asked = yield pick((*evenly(DIGITS, 2.0), *names))
    if asked in DIGITS:
        yield say(" plus")
        other = yield pick(evenly(DIGITS))
        yield say("?\nA:")
        yield say(asked, "copy")
        yield say(" plus")
        yield say(other, "copy")
        yield say(" is")
        yield say(f" {int(asked) + int(other)}", "arithmetic")
        yield say(".")
        return
    person = world.people[asked.removesuffix("'s")]
    topic = yield pick(((" job?", 1.0), (" favourite colour?", 1.0)))
    yield say("\nA:")
    if topic == " job?":
        yield say(person.name, "copy")
        yield say(" works as")
        yield say(a(person.job), "fact")
    else:
        yield say(person.names, "copy")
        yield say(" favourite colour is")
        yield say(person.colour, "fact")
    yield say(".")


def who_is(world: World, story: Story | None) -> Program:
    """Somebody, somebody's best friend, or the cast of the story."""
    options = [*_people(world, story), *((n + "'s", w) for n, w in _people(world, story))]
    if story:
        options.append((" in the story?", 1.0))
    asked = yield pick(tuple(options))
    if story and asked == " in the story?":
        yield say("\nA:")
        for number, name in enumerate(story.people):
            if number:
                yield say("," if number < len(story.people) - 1 else " and")
            yield say(name, "copy")
        yield say(" are in the story.")
    elif asked.endswith("'s"):
        person = world.people[asked.removesuffix("'s")]
        yield say(" best friend?\nA:")
        yield say(person.names, "copy")
        yield say(" best friend is")
        yield say(person.friend, "fact")
        yield say(".")
    else:
        person = world.people[asked]
        yield say("?\nA:")
        yield say(person.name, "copy")
        yield say(" lives")
        yield say(person.home, "fact")
        yield say(" and works as")
        yield say(a(person.job), "fact")
        yield say(".")


def where_is(world: World, story: Story | None) -> Program:
    """A person or a thing; whoever and whatever was not in the story is not known."""
    if story is None:
        yield pick(evenly(list(world.people)))
        yield say("?\nA:")
        yield say(" I do not know.", "tracking")
        return
    strangers = [name for name in world.people if name not in story.people]
    options = list(evenly(story.people)) + (list(evenly(strangers, 0.15)) if strangers else [])
    if story.things:
        options.append((" the", 2.0))
    asked = yield pick(tuple(options))
    if asked != " the":
        yield say("?\nA:")
        if asked in strangers:
            yield say(" I do not know.", "tracking")
            return
        yield say(asked, "tracking")
        yield say(" is")
        yield say(story.hidden.get(asked, story.domain.at), "tracking")
        yield say(".")
        return
    thing = yield from _a_thing(story)
    yield say("?\nA:")
    if thing is None:
        yield say(" I do not know.", "tracking")
    elif thing.holder:
        yield say(thing.holder, "tracking")
        yield say(" has it.")
    else:
        yield say(" The", "tracking")
        yield say(thing.text, "copy")
        yield say(" is")
        yield say(thing.spot, "tracking")
        yield say(".")


def _a_thing(story: Story) -> Program:
    """One that was found or, sometimes, one that never was (None)."""
    known = {thing.colour: thing for thing in story.things}
    strange = [colour for colour in COLOURS if colour not in known]
    options = evenly(list(known)) + (evenly(strange, 0.12) if strange else ())
    colour = yield pick(options)
    if colour in known:
        yield say(known[colour].noun, "copy")
        return known[colour]
    yield pick(evenly(list(story.domain.things)))
    return None


def about_thing(story: Story, stem: str) -> Program:
    """Who has or found it, and what colour it is."""
    if stem == " What colour is the":
        noun = yield pick(evenly([thing.noun for thing in story.things]))
        thing = next(thing for thing in story.things if thing.noun == noun)
        yield say("?\nA:")
        yield say(" The")
        yield say(noun, "copy")
        yield say(" is")
        yield say(thing.colour, "copy")
        yield say(".")
        return
    thing = yield from _a_thing(story)
    yield say("?\nA:")
    if thing is None:
        yield say(" I do not know.", "tracking")
    elif stem == " Who found the":
        yield say(thing.finder, "copy")
        yield say(" found the")
        yield say(thing.text, "copy")
        yield say(".")
    else:
        yield say(thing.holder or " Nobody", "tracking")
        yield say(" has the")
        yield say(thing.text, "copy")
        yield say(".")


def what_found(story: Story) -> Program:
    """What somebody found first."""
    finders = list(dict.fromkeys(thing.finder for thing in story.things))
    name = yield pick(evenly(finders), "plan", "tracking")
    yield say(" find first?\nA:")
    thing = next(thing for thing in story.things if thing.finder == name)
    yield say(name, "copy")
    yield say(" found")
    yield say(a(thing.colour) + thing.noun, "copy")
    yield say(".")


def how_many(story: Story) -> Program:
    """What somebody has gathered by now."""
    nouns = list(dict.fromkeys(noun for _, noun, _ in story.counts.values()))
    noun = yield pick(evenly(nouns), "plan", "copy")
    yield say(" does")
    name = yield pick(
        tuple((n, 3.0 if story.counts.get(n, ("", ""))[1] == noun else 0.5) for n in story.people)
    )
    _, counted, number = story.counts.get(name, ("", "", 0))
    yield say(" have?\nA:")
    yield say(name, "copy")
    yield say(" has")
    yield say(f" {number}" if counted == noun else " no", "tracking")
    yield say(noun, "copy")
    yield say(".")


def about_person(world: World, story: Story | None, stem: str) -> Program:
    """Home, pet and food."""
    name = yield pick(_people(world, story))
    person = world.people[name]
    match stem:
        case " Does":
            yield say(" have")
            others = [(a(pet), 1.0 / len(PETS)) for pet in PETS if pet != person.pet]
            asked = yield pick(((a(person.pet), 1.0), *others))
            yield say("?\nA:")
            right = asked == a(person.pet)
            yield say(" Yes," if right else " No,", "fact")
            yield say(person.she, "agreement")
            yield say(" does" if right else " has")
            if not right:
                yield say(a(person.pet), "fact")
        case " Where does":
            yield say(" live?\nA:")
            yield say(name, "copy")
            yield say(" lives")
            yield say(person.home, "fact")
        case " What pet does":
            yield say(" have?\nA:")
            yield say(person.names, "copy")
            yield say(" pet is")
            yield say(a(person.pet), "fact")
        case _:
            yield say(" like to eat?\nA:")
            yield say(name, "copy")
            yield say(" likes to eat")
            yield say(person.food, "fact")
    yield say(".")
