"""What an instrument says of a conversation, asked of Tiny Town."""

import pytest

from llm.data.tinytown.source import Tinytown
from llm.generate.conversation import Turn
from llm.generate.judge import completed, opens_document, verdict


@pytest.fixture(scope="module")
def town():
    return Tinytown()


@pytest.fixture(scope="module")
def name(town):
    return next(iter(town.world.people)).strip()


def asked(question: str, answer: str, ending="stop") -> Turn:
    return Turn(f"Q: {question}\nA:", answer, ending)


SUM = asked("What is 3 plus 4?", " 3 plus 4 is 7.\n")


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time",
        "Once upon a time,",
        "Once upon a time, there was a dragon.",
        "One sunny morning",
        "Not long ago",
    ],
)
def test_the_first_words_of_a_story_open_one(town, text):
    assert opens_document(town, town.dialogue, text)


@pytest.mark.parametrize(
    "text",
    [
        "Tell me a story.",
        "tell me a story",
        "Hello",
        "Where is the ball?",
        "Once upon a time, who was there?",
        "What a day",
        "Is anybody there",
        "…",
    ],
)
def test_anything_else_is_a_question(town, text):
    assert not opens_document(town, town.dialogue, text)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tell me a story", "Tell me a story."),
        ("Tell me a story.", "Tell me a story."),
        ("hello", "Hello!"),
        ("what is 3 plus 4", "What is 3 plus 4?"),
        ("what about dragons", "what about dragons"),
        ("", ""),
    ],
)
def test_capitals_and_marks_are_put_where_the_language_has_them(town, typed, meant):
    assert completed(town, town.dialogue, [], typed) == meant


def test_what_a_story_brought_can_be_asked_in_short(town):
    stories = (text[: text.index("\n") + 1] for text in map(town.sample, range(200)))
    told = next(text for text in stories if " found a " in text and text.startswith("Once upon"))
    colour, thing = told.split(" found a ")[1].split()[:2]
    opening = Turn("Once upon a time", told.removeprefix("Once upon a time"), "stop")
    typed = f"who has the {colour} {thing}"
    meant = f"Who has the {colour} {thing}?"
    assert completed(town, town.dialogue, [opening], typed) == meant
    assert completed(town, town.dialogue, [], typed) == typed


def test_a_right_answer(town):
    assert verdict(town, [SUM]).startswith("right: every word")


def test_a_wrong_answer_names_the_word_its_place_and_the_right_one(town):
    line = verdict(town, [asked("What is 3 plus 4?", " 3 plus 4 is 8.\n")])
    assert line == "wrong: 3 plus 4 is [8]; right is “3 plus 4 is 7.”"


def test_an_answer_that_was_cut_off_is_no_error(town):
    for answer in ("", " 3 plus", " 3 plus 4 is", " 3 pl"):
        line = verdict(town, [asked("What is 3 plus 4?", answer, "length")])
        assert line == "right as far as it goes: the answer was cut off"
    line = verdict(town, [asked("What is 3 plus 4?", " 3 plus 5 is", "interrupted")])
    assert line.startswith("wrong: 3 plus [5]")


def test_an_answer_that_ends_too_early_by_itself_is_wrong(town):
    line = verdict(town, [asked("What is 3 plus 4?", " 3 plus 4 is 7.", "end of text")])
    assert line == "wrong: 3 plus 4 is 7. [the end]; right is “3 plus 4 is 7.”"


def test_a_question_outside_the_language_cannot_be_judged(town):
    line = verdict(town, [asked("Where is the dragon?", " I do not know.\n")])
    assert line.startswith("cannot say: your own words left the language: Where is [the]; it has “")
    assert "Q:" not in line


def test_a_story_can_go_on_in_several_ways(town):
    line = verdict(town, [Turn("Once upon a time", ", a dragon came.\n", "stop")])
    assert line.startswith("wrong: Once upon a time, [a]; there could have stood “")


def test_a_wrong_answer_before_is_taken_for_the_right_one(town):
    wrong = asked("What is 3 plus 4?", " I do not know.\n")
    unfinished = asked("What is 3 plus 4?", " 3 plus 5", "length")
    line = verdict(town, [wrong, unfinished, asked("What is 1 plus 1?", " 1 plus 1 is 3.\n")])
    assert line == "wrong: 1 plus 1 is [3]; right is “1 plus 1 is 2.”"


def test_a_strange_turn_before_is_left_aside(town, name):
    strange = asked("What about dragons?", " 3 plus.\n")
    assert verdict(town, [strange, SUM]).startswith("right: every word of the answer is in the la")
    assert "leaving aside" in verdict(town, [strange, SUM])
    assert "leaving aside" not in verdict(town, [SUM, SUM])


def test_what_may_depend_on_a_strange_turn_is_not_judged(town, name):
    story = Turn("Once upon a time", ", a dragon came.\n", "stop")
    line = verdict(town, [story, asked(f"Where is {name}?", f" {name} is in the cave.\n")])
    assert line == (
        "cannot say: “Once upon a time, a dragon …” was not all in the language, and what follows "
        "may depend on it; /reset begins anew"
    )


def test_whole_samples_are_right_turn_by_turn(town):
    for seed in range(20):
        lines = town.sample(seed).splitlines(keepends=True)
        turns = []
        while lines:
            line = lines.pop(0)
            if line.startswith("Q:"):
                answer = lines.pop(0)
                turns.append(Turn(line.rstrip("\n") + "\nA:", answer.removeprefix("A:"), "stop"))
            else:
                turns.append(Turn(line[:10], line[10:], "stop"))
            assert verdict(town, turns).startswith("right: every word"), (turns, line)


def test_nothing_said(town):
    assert verdict(town, []) == "nothing has been said yet"
