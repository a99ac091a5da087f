"""The story: a few people at one place, who find things, pass them on, hide, and count.

Each function is a program in the sense of program.py: it yields what is written next and is sent
what was picked. What it remembers in a `Story` follows from the text so far.
"""

from llm.data.tinytown.actions import action
from llm.data.tinytown.program import Program, pick, say
from llm.data.tinytown.state import Story, Style, adverbs, evenly
from llm.data.tinytown.words import Domain
from llm.data.tinytown.world import World, a

OPENINGS = (
    ("Once upon a time,", 6.0),
    ("One sunny morning,", 1.0),
    ("One windy day,", 1.0),
    ("One quiet afternoon,", 1.0),
    ("Not long ago,", 1.0),
)


def tell(
    world: World,
    style: Style,
    *,
    lead: str | None = None,
    domain: Domain | None = None,
) -> Program:
    """A story after its first words, up to its line's end; returns the `Story`.

    `lead` and `domain` are those that were asked for, if any.
    """
    story = yield from opening(world, lead, domain)
    events = 0
    while True:
        ending = _hazard(events, style)
        done = yield from sentence(world, style, story, ending)
        if done:
            return story
        events += 1


def _hazard(events: int, style: Style) -> float:
    """Chance that the story ends now: from the least to the most, any number is as likely.

    The limits are soft. Were they hard, a reader who has lost count by one would leave the
    language, and whoever asks for right and wrong would hear about counting sentences only.
    """
    if events < style.min_events:
        return EARLY
    if events >= style.max_events:
        return LATE
    return 1.0 / (style.max_events - events + 1)


def opening(world: World, lead: str | None, domain: Domain | None) -> Program:
    """Who goes where, with whom: the rest of the first sentence."""
    if lead is None:
        lead = yield pick(evenly(list(world.people)))
    else:
        yield say(lead, "copy")
    person = world.people[lead]
    turn = yield pick(((" went", 4.0), (" and", 3.0), (" the", 2.0), (", who lived", 2.0)))
    if turn == " the":
        yield say(person.job, "fact")
        turn = yield pick(((" went", 4.0), (" and", 3.0)))
    elif turn == ", who lived":
        yield say(person.home, "fact")
        yield say(", went")
        turn = " went"
    if turn == " went":
        place = yield from _destination(world, domain)
        yield say(" with")
        company = yield pick(((person.her, 2.0), *_strangers(world, [lead], 2.0)))
        if company == person.her:
            yield say(" best friend")
            yield say(person.friend, "fact")
            company = person.friend
        yield say(".")
        return Story(place, [lead, company], topic=lead)
    company = yield pick(((person.her, 1.0), *_strangers(world, [lead], 2.0)))
    if company != person.her:
        yield say(" went")
        place = yield from _destination(world, domain)
        yield say(" together.")
        return Story(place, [lead, company])
    yield say(person.pet, "fact")
    yield say(" went")
    place = yield from _destination(world, domain)
    yield say(" and met")
    company = yield pick(_strangers(world, [lead], 1.0))
    yield say(".")
    return Story(place, [lead, company], topic=lead)


def _destination(world: World, domain: Domain | None) -> Program:
    if domain is not None:
        yield say(domain.to, "copy")
        return domain
    to = yield pick(evenly([place.to for place in world.domains]))
    return next(place for place in world.domains if place.to == to)


def _strangers(world: World, known: list[str], total: float) -> tuple[tuple[str, float], ...]:
    return evenly([name for name in world.people if name not in known], total)


def sentence(world: World, style: Style, story: Story, ending: float) -> Program:
    """One more sentence; returns True where it was the story's last."""
    topic = world.people[story.topic] if story.topic else None
    options: list[tuple[str, float]] = []
    if topic:
        options += [(topic.She, 2.0), (topic.Her, story.fresh(topic.pet, 0.5))]
    options += [(name, 0.3 if name == story.topic else 1.0) for name in story.visible]
    options += [(" Then", story.fresh(" Then", 0.5)), (" The", story.fresh(" The", 0.5))]
    if len(story.people) < min(len(world.people), 2 + style.max_events // 5):
        options.append((" Soon", 0.4))
    if story.cue:
        options.append((' "', 3.5))
    mass = total_of(options) * ending / (1.0 - ending)
    options += [(text, mass * share) for text, share in FAREWELLS]
    start = yield pick(tuple(options), "plan", "grammar")
    cue, story.cue = story.cue, None
    story.used.discard(" Then")  # only not twice in a row
    if start in (text for text, _ in FAREWELLS):
        yield from farewell(world, story, start)
        return True
    if cue and start == ' "':
        yield from reply(story, cue)
    elif start == " Soon":
        yield from arrival(world, story)
    elif start == " The":
        yield from scene(style, story)
    elif topic and start == topic.Her:
        yield say(topic.pet, "fact")
        yield pick(PET_DOINGS, "style")
        yield say(".")
        story.used.add(topic.pet)
    else:
        if start == " Then":
            story.used.add(" Then")
            subjects = [(topic.she, 1.5)] if topic else []
            subjects += [(name, 1.0) for name in story.visible if name != story.topic]
            start = yield pick(tuple(subjects), "plan", "copy")
        if topic and start in (topic.She, topic.she):
            start = topic.name
        story.topic = start
        yield from action(style, story, world.people[start])
    return False


#: The chance of a story's end before it has its least, and once it has its most events.
EARLY, LATE = 0.01, 0.8

#: How a story's last sentences begin, and how often.
FAREWELLS = ((" In the evening,", 0.4), (" At last", 0.3), (" When the moon rose,", 0.3))

PET_DOINGS = evenly([" fell asleep", " ran in circles", " wanted to play", " sneezed"])


def total_of(options: list[tuple[str, float]]) -> float:
    """Sum of the weights by plain additions: the built-in's result depends on the version."""
    total = 0.0
    for _, weight in options:
        total += weight
    return total


def reply(story: Story, cue: tuple[str, ...]) -> Program:
    """What somebody says to what has just happened: '"Thank you, Tom," said Mia.'."""
    what, name, *more = cue
    speaker: str | None = name
    verb = " said"
    match what:
        case "gave":
            yield say("Thank you,")
            yield say(name, "copy")
            yield say(',"')
            speaker = more[0]
        case "found":
            yield say("Look,")
            yield say(a(more[0]) + more[1], "copy")
            yield say('!"')
        case "hid":
            yield say("Where are you,")
            yield say(name, "copy")
            yield say('?"')
            speaker, verb = None, " called"
        case "met":
            yield say("Here you are,")
            yield say(name, "copy")
            yield say('!"')
            speaker = more[0]
        case _:
            yield say("I have")
            yield say("".join(more), "copy")
            yield say('!"')
    yield say(verb)
    if speaker:
        yield say(speaker, "copy")
    else:
        speaker = yield pick(evenly(story.visible), "plan", "copy")
    yield say(".")
    story.topic = speaker


def arrival(world: World, story: Story) -> Program:
    """Somebody else comes: "Soon Tom the sailor came along."."""
    name = yield pick(_strangers(world, story.people, 1.0))
    turn = yield pick(((" came", 1.0), (" the", 1.0)), "plan")
    if turn == " the":
        yield say(world.people[name].job, "fact")
        yield say(" came")
    yield say(" along.")
    story.people.append(name)
    story.topic = name


def scene(style: Style, story: Story) -> Program:
    """What goes on around them: "The bees hummed softly."."""
    scenes = story.domain.scenes
    told = yield pick(tuple((text, story.fresh(text, 1.0)) for text in scenes), "style")
    story.used.update((" The", told))
    mark = yield pick(((".", 1.0), *adverbs(style, story, 2.0)), "style")
    if mark != ".":
        yield say(".")


def farewell(world: World, story: Story, start: str) -> Program:
    """The story's last sentences, up to the end of the line."""
    visible = story.visible
    first = world.people[visible[0]]
    if start == " In the evening,":
        for number, name in enumerate(visible):
            if number:
                yield say("," if number < len(visible) - 1 else " and")
            yield say(name, "tracking" if story.hidden or number == 0 else "copy")
        yield pick(evenly([" sang a song", " told jokes", " lit a fire"]), "style")
        yield say(".")
    elif start == " At last":
        yield say(first.name, "tracking")
        yield say(" yawned and thought of")
        yield say(first.her, "agreement")
        yield say(first.pet, "fact")
        yield say(".")
    else:
        yield say(first.name, "tracking")
        yield say(" dreamed of")
        yield say(first.food, "fact")
        yield say(".")
    coda = yield pick((("\n", 2.0), (" What a", 1.0), (" Everybody was", 1.0)), "style")
    if coda == " What a":
        yield pick(evenly([" lovely", " funny", " busy"]), "style")
        yield say(" day!\n")
    elif coda == " Everybody was":
        yield pick(evenly([" happy", " tired", " hungry"]), "style")
        yield say(".\n")
