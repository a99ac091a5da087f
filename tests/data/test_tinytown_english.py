"""Tiny Town's English is right, and so are its answers.

Its stories are read by a second reader, which knows nothing of the program: it follows subjects and
things with regular expressions and judges pronouns and answers.
"""

import re

import pytest

from llm.data.tinytown import Tinytown


@pytest.fixture(scope="module")
def town() -> Tinytown:
    return Tinytown()


@pytest.fixture(scope="module")
def texts(town: Tinytown) -> list[str]:
    return [town.sample(number) for number in range(1200)]


SENTENCE_END = re.compile(r'(?<=[.!?]) (?=[A-Z"])|(?<=[.!?]") (?=[A-Z"])')


def test_articles_fit_their_words(texts: list[str]) -> None:
    for article, word in re.findall(r"\b([Aa]n?) ([a-z]+)", "\n".join(texts)):
        assert (article.lower() == "an") == (word[0] in "aeiou"), f"{article} {word}"


def test_sentences_begin_with_a_capital_and_end(texts: list[str]) -> None:
    for text in texts:
        assert text.endswith("\n") and "  " not in text
        for line in text.splitlines():
            body = line[3:] if line[:2] in ("Q:", "A:") else line
            assert body[0].isupper() or body[0].isdigit(), line
            assert body[-1] in '.!?"', line
            for sentence in SENTENCE_END.split(body):
                assert sentence.lstrip('"')[0].isupper() or sentence[0].isdigit(), sentence


class Reader:
    """Reads stories sentence by sentence: whom a pronoun means, and where things are."""

    def __init__(self, town: Tinytown):
        self.women = {p.name.strip(): p.woman for p in town.world.people.values()}
        self.topic = ""
        self.where: dict[str, str] = {}  # thing: " Mia" who has it, or its spot
        self.pronouns = 0

    def read(self, story: str) -> None:
        self.where, self.topic = {}, ""
        for sentence in SENTENCE_END.split(story):
            self.sentence(sentence)

    def sentence(self, sentence: str) -> None:
        said = re.fullmatch(r'".*" (?:said|called) (\w+)\.', sentence)
        if said:
            self.topic = said[1]
            return
        names = r"\b(" + "|".join(self.women) + r")\b"
        starter = re.match(r"(Then |Soon |At last |When the moon rose, )?(\w+)", sentence)
        first = starter[2]
        if first in self.women:
            self.topic = first
        elif re.match(r"(Once|One|Not)\b", sentence):
            self.topic = re.search(names, sentence)[1]
        if first.lower() in ("she", "he", "her", "his"):
            self.agree(first)
        for pronoun in re.findall(r"\b(she|he|her|his|him)\b", sentence):
            self.agree(pronoun)
        self.things(sentence)

    def agree(self, pronoun: str) -> None:
        self.pronouns += 1
        assert self.women[self.topic] == (pronoun.lower() in ("she", "her")), (pronoun, self.topic)

    def things(self, sentence: str) -> None:
        if found := re.search(r"\bfound an? (\w+ \w+) ", sentence):
            self.where[found[1]] = self.topic
        elif gave := re.search(r"\bgave the (\w+ \w+) to (\w+)\.", sentence):
            assert self.where[gave[1]] == self.topic
            self.where[gave[1]] = gave[2]
        elif put := re.search(r"\bput the (\w+ \w+) (.*)\.", sentence):
            assert self.where[put[1]] == self.topic
            self.where[put[1]] = put[2]
        elif looked := re.search(r"\blooked (.*) and found the (\w+ \w+)\.", sentence):
            assert self.where[looked[2]] == looked[1]
            self.where[looked[2]] = self.topic
        elif missed := re.search(r"\blooked (.*) but found nothing", sentence):
            assert missed[1] not in self.where.values()


def test_another_reader_agrees(town: Tinytown, texts: list[str]) -> None:
    """On pronouns, on where things are, and on the answers about them."""
    reader, answers = Reader(town), 0
    for text in texts:
        lines = text.splitlines()
        for number, line in enumerate(lines):
            body = line.removeprefix("A: ")
            if re.match(r"(Once|One|Not)\b", body):
                reader.read(body)
            question = lines[number - 1]
            if who := re.fullmatch(r"Q: Who has the (\w+ \w+)\?", question):
                place = reader.where.get(who[1], "")
                holder = place if place in reader.women else "Nobody"
                assert body == (f"{holder} has the {who[1]}." if place else "I do not know.")
                answers += 1
            elif where := re.fullmatch(r"Q: Where is the (\w+ \w+)\?", question):
                place = reader.where.get(where[1], "")
                held = place in reader.women
                found = f"{place} has it." if held else f"The {where[1]} is {place}."
                assert body == (found if place else "I do not know.")
                answers += 1
    assert answers > 100 and reader.pronouns > 1000


def test_facts_hold_in_every_document(town: Tinytown, texts: list[str]) -> None:
    told = dict(re.findall(r"(\w+)'s favourite colour is (\w+)\.", "\n".join(texts)))
    pairs = set(re.findall(r"(\w+)'s favourite colour is (\w+)\.", "\n".join(texts)))
    assert len(pairs) == len(told) == len(town.world.people)
    for person in town.world.people.values():
        friend = town.world.people[person.friend]
        assert friend.friend == person.name != person.friend
    other = Tinytown(world_seed=1).world.people
    assert list(other) != list(town.world.people)
    assert Tinytown(seed=1).world == town.world


def test_sums_are_right(texts: list[str]) -> None:
    sums = re.findall(r"(\d+) plus (\d+) is (\d+)\.", "\n".join(texts))
    assert len(sums) > 100
    assert all(int(a) + int(b) == int(c) for a, b, c in sums)
