"""Tiny Town: what it samples is what it scores, its probabilities are whole, its knobs count."""

import hashlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from experiments.tinytown.ngram import LADDER, Ladder, climb
from llm.config.errors import Refused
from llm.data.corpus import Instrument
from llm.data.tinytown import Tinytown
from llm.data.tinytown.program import SKILLS, pick
from llm.data.tinytown.workers import texts_in_parallel
from llm.tokenizer.pieces import pieces_of

KNOBS = [
    {},
    {"people": 50, "world_seed": 3},
    {"people": 120, "domains": 1},
    {"people": 2, "domains": 2},
    {"min_events": 20, "max_events": 40},
    {"min_events": 0, "max_events": 1, "noise": 0.5},
    {"noise": 1.0, "stories": 1.0, "questions": 0.0},
    {"stories": 0.0, "questions": 0.9},
]


@pytest.fixture(scope="module")
def town() -> Tinytown:
    return Tinytown()


@pytest.fixture(scope="module")
def texts(town: Tinytown) -> list[str]:
    return [town.sample(number) for number in range(600)]


# Probabilities


def test_is_an_instrument(town: Tinytown) -> None:
    assert isinstance(town, Instrument)
    assert town.skills == SKILLS


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_scored_is_what_was_drawn(knobs: dict) -> None:
    town = Tinytown(**knobs)
    for number in range(60):
        drawn = town.draw("train", number)
        text = "".join(drawn.pieces)
        score = town.score(text)
        assert score.accepted
        assert np.abs(score.nats - drawn.nats).max() < 1e-9
        assert score.skills.tolist() == drawn.skills
        assert score.ends[-1] == score.ends[-2] == len(text)


@pytest.mark.parametrize("knobs", [{}, {"noise": 0.3, "people": 50}], ids=str)
def test_next_pieces_sum_to_one(knobs: dict) -> None:
    """Brute force over the vocabulary, at random beginnings of documents."""
    town, dice = Tinytown(**knobs), random.Random(1)
    for number in range(8):
        pieces = pieces_of(town.sample(number))
        at = dice.randrange(len(pieces))
        prefix = "".join(pieces[:at])
        total = 0.0
        ended = town.score(prefix)
        if ended.accepted:
            total += np.exp(-ended.nats[-1])
        for piece in town.pieces:
            score = town.score(prefix + piece)
            if len(score.nats) > at and score.ends[at] == len(prefix + piece):
                total += np.exp(-score.nats[at])
        assert total == pytest.approx(1.0, abs=1e-9), prefix


def test_one_wrong_word_is_noticed(town: Tinytown) -> None:
    """A corruption: one piece, anywhere in a document, becomes any other piece.

    Some give another legal document (another scarf is as good), so this cannot be all of them.
    """
    dice, rejected = random.Random(2), 0
    for number in range(500):
        pieces = pieces_of(town.sample(number))
        at = dice.randrange(len(pieces))
        pieces[at] = dice.choice([piece for piece in town.pieces if piece != pieces[at]])
        rejected += not town.score("".join(pieces)).accepted
    assert rejected / 500 > 0.99


def test_floor_agrees_with_independent_samples() -> None:
    town = Tinytown(documents=1, val_documents=500)
    val = _floor(town, [d.text for d in town.documents() if d.split == "val"])
    more = _floor(town, [town.sample(number) for number in range(500)])
    assert abs(val[0] - more[0]) < 3 * np.hypot(val[1], more[1])


@pytest.mark.slow
def test_floor_agrees_with_a_long_monte_carlo_estimate() -> None:
    town = Tinytown()
    first = _floor(town, [town.sample(number) for number in range(15_000)])
    second = _floor(Tinytown(seed=1), [town.sample(number) for number in range(15_000, 30_000)])
    assert abs(first[0] - second[0]) < 3 * np.hypot(first[1], second[1])
    assert first[1] < 0.002


def _floor(town: Tinytown, texts: list[str]) -> tuple[float, float]:
    """Nats per piece and the standard error of this ratio of sums over documents."""
    scores = [town.score(text) for text in texts]
    nats = np.array([score.nats.sum() for score in scores])
    counts = np.array([len(score.nats) for score in scores])
    mean = nats.sum() / counts.sum()
    return mean, (nats - mean * counts).std() / counts.mean() / np.sqrt(len(texts))


def test_determined_pieces_are_free_and_choices_are_not(town: Tinytown) -> None:
    for number in range(300):
        drawn = town.draw("train", number)
        for nats, skill in zip(drawn.nats, drawn.skills, strict=True):
            assert (nats > 0) == (SKILLS[skill] in ("style", "plan"))


def test_a_choice_without_a_visible_end_is_refused() -> None:
    for options in ((" a", 1.0), (" a b", 1.0)), ((" a b", 1.0), (" a", 1.0)), ((" a", 1.0),) * 2:
        with pytest.raises(ValueError, match="beginning"):
            pick(options)


def test_options_that_begin_alike_are_one_decision() -> None:
    fork = pick(((" in the barn", 1.0), (" in the boat", 2.0), (" outside", 1.0)))
    assert fork.pieces == [" in", " outside"]
    assert np.exp(-np.array(fork.nats)) == pytest.approx([0.75, 0.25])
    then = fork.after[0].after[0]
    assert np.exp(-np.array(then.nats)) == pytest.approx([1 / 3, 2 / 3])


# Conversations


def test_a_beginning_lacks_only_its_end(town: Tinytown) -> None:
    for number in range(40):
        pieces = pieces_of(town.sample(number))
        for at in range(1, len(pieces), 7):
            prefix = "".join(pieces[:at])
            score = town.score(prefix)
            assert score.accepted or score.outside.piece == ""
            assert score.accepted or score.outside.position == len(prefix) == score.ends[-1]


def test_answers_are_checked_within_the_conversation(town: Tinytown) -> None:
    form = town.dialogue

    def turn(question: str, answer: str) -> str:
        return form.user + question + form.assistant + answer + form.stop

    right = turn("What is 7 plus 5?", " 7 plus 5 is 12.")
    assert town.score(right).accepted
    wrong = town.score(turn("What is 7 plus 5?", " 7 plus 5 is 13."))
    assert wrong.outside.piece == " 13" and wrong.outside.expected == [" 12"]
    asked = town.score(form.user + "Tell me a story." + form.assistant)
    assert asked.outside.piece == "" and " Once" in asked.outside.expected
    assert town.score(right + turn("Who are you?", " I am a tiny model of a tiny town.")).accepted
    assert "Once" in town.score("").outside.expected
    assert town.score("What is love?").outside == (0, "What", ["Q", "Once", "One", "Not"])


# Pieces


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_pieces_are_what_the_regular_expression_cuts(knobs: dict) -> None:
    town = Tinytown(**knobs)
    known = set(town.pieces)
    assert len(known) == len(town.pieces)
    for number in range(100):
        drawn = town.draw("val", number)
        assert pieces_of("".join(drawn.pieces)) == drawn.pieces[:-1]
        assert known >= set(drawn.pieces[:-1])


@pytest.mark.slow
def test_no_word_is_listed_in_vain(town: Tinytown) -> None:
    seen = {piece for number in range(8000) for piece in pieces_of(town.sample(number))}
    seen |= {piece for n in range(300) for piece in pieces_of(Tinytown(noise=1.0).sample(n))}
    assert set(town.pieces) == seen


def test_a_document_fits_a_short_window(town: Tinytown, texts: list[str]) -> None:
    lengths = np.array([len(pieces_of(text)) + 1 for text in texts])
    assert 60 < lengths.mean() < 150
    assert (lengths > 256).mean() < 0.05
    assert 350 <= len(town.pieces) <= 600


# Reproducibility


def test_same_seed_same_text_everywhere(town: Tinytown) -> None:
    assert _digest(town) == GOLDEN


def test_hash_randomisation_changes_nothing() -> None:
    code = (
        "import hashlib; from llm.data.tinytown import Tinytown; t = Tinytown();"
        "print(hashlib.sha256(''.join(t.sample(n) for n in range(100)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == GOLDEN


def _digest(town: Tinytown) -> str:
    return hashlib.sha256("".join(town.sample(n) for n in range(100)).encode()).hexdigest()


#: Of 100 samples at the defaults. Where it changes on purpose, `LANGUAGE` in source.py goes up.
GOLDEN = "4b0e46686c0b4a834d95a21eb4ddccd24fa6e71ef8de0ba483d2098aa02d1e95"


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.data.tinytown.workers.CHUNK", 7)
    town = Tinytown()
    written = list(texts_in_parallel(town.parameters, "train", 20, workers=2))
    assert written == town.texts("train", 0, 20)


def test_documents_come_in_splits() -> None:
    town = Tinytown(documents=30, val_documents=5, workers=1)
    documents = list(town.documents())
    assert [document.split for document in documents] == ["train"] * 30 + ["val"] * 5
    assert documents[0].text != documents[30].text
    assert documents[30:] == list(Tinytown(documents=1, val_documents=5).documents())[1:]


def test_description_tells_worlds_apart() -> None:
    described = [Tinytown(**knobs).describe() for knobs in KNOBS]
    assert len({json.dumps(facts) for facts in described}) == len(KNOBS)
    assert len({facts["witness"] for facts in described}) == len(KNOBS)
    assert Tinytown(workers=3).describe() == Tinytown(workers=1).describe()


def test_contradiction_is_refused() -> None:
    with pytest.raises(Refused, match="min_events"):
        Tinytown(min_events=9)


# Knobs


def test_knobs_do_what_they_say() -> None:
    def mean_pieces(**knobs: int | float) -> float:
        town = Tinytown(**knobs)
        return float(np.mean([len(pieces_of(town.sample(n))) for n in range(150)]))

    assert mean_pieces(min_events=20, max_events=30) > 2 * mean_pieces()
    assert mean_pieces(questions=0.9) > 1.5 * mean_pieces()
    assert not any("Q:" in Tinytown(questions=0.0, stories=1.0).sample(n) for n in range(50))
    assert all(Tinytown(stories=0.0).sample(n).startswith("Q:") for n in range(50))
    assert len(Tinytown(people=300).world.people) == 300
    assert "sea" not in "".join(Tinytown(domains=1).sample(n) for n in range(200))


def test_noise_adds_to_the_floor() -> None:
    floors = []
    for noise in (0.0, 1.0):
        town = Tinytown(noise=noise)
        floors.append(np.mean([town.score(town.sample(n)).nats.sum() for n in range(300)]))
    assert floors[1] > floors[0]


# The n-gram ladder of experiments/tinytown


def test_ladder_is_a_distribution(town: Tinytown, texts: list[str]) -> None:
    ladder = Ladder(town.pieces, texts[:300])
    prefix = "".join(pieces_of(texts[400])[:9])
    totals = np.exp(-ladder.nats([prefix])[:, -1])
    for piece in town.pieces:
        if len(pieces_of(prefix + piece)) == 10:
            totals += np.exp(-ladder.nats([prefix + piece])[:, -2])
    # A piece that would melt into the word before it cannot be asked for, and is hardly expected.
    assert totals == pytest.approx(np.ones(LADDER), abs=0.1)
    assert (totals <= 1.0 + 1e-9).all()


def test_ladder_climbs_towards_the_floor() -> None:
    rungs = climb(Tinytown(documents=1000, val_documents=100, workers=1))
    assert (np.diff(rungs.nats) < 0).all()
    assert (rungs.excess > 0.4).all()
    assert sum(share for share, _, _ in rungs.by_skill.values()) == pytest.approx(1.0)
    assert sum(x for _, _, x in rungs.by_skill.values()) == pytest.approx(rungs.excess)


@pytest.mark.slow
def test_four_pieces_carry_not_far_enough() -> None:
    """What the issue asks for: the 4-gram stays 0.4 nats a piece above the floor."""
    assert climb(Tinytown()).excess[3] > 0.4
