"""The Markov source: its formula holds, what it draws is what it scores, its knobs count."""

import hashlib
import math
from itertools import product

import numpy as np
import pytest

from llm.config.errors import Refused
from llm.data.corpus import Instrument
from llm.data.markov import Markov
from llm.tokenizer.pieces import pieces_of


@pytest.fixture(scope="module")
def source() -> Markov:
    return Markov()


def test_is_an_instrument(source: Markov) -> None:
    assert isinstance(source, Instrument)
    assert source.dialogue is None


@pytest.mark.parametrize(("order", "zipf"), [(1, 0.0), (2, 1.0), (3, 2.0)])
def test_floor_of_the_formula_agrees_with_long_samples(order: int, zipf: float) -> None:
    source = Markov(order=order, symbols=8, successors=4, zipf=zipf, length=100)
    means = np.array([source.score(source.sample(n)).nats.mean() for n in range(400)])
    error = means.std() / math.sqrt(len(means)) + 1e-12
    assert abs(means.mean() - source.floor) < 4 * error


def test_entropy_rate_agrees_with_the_stationary_distribution() -> None:
    source = Markov(order=2, symbols=6, successors=3, zipf=1.3)
    contexts = list(product(range(6), repeat=2))
    chances = [1 / rank**1.3 for rank in (1, 2, 3)]
    transition = np.zeros((36, 36))
    for row, context in enumerate(contexts):
        text = "".join(source.pieces[symbol] for symbol in context)
        for symbol in range(6):
            score = source.score(text + source.pieces[symbol])
            if len(score.nats) == 3:
                column = contexts.index((context[1], symbol))
                transition[row, column] = math.exp(-score.nats[2])
    assert np.allclose(transition.sum(axis=1), 1.0)
    for row in transition:
        assert np.allclose(sorted(row[row > 0]), sorted(np.array(chances) / sum(chances)))
    stationary = np.full(36, 1 / 36)
    for _ in range(2000):
        stationary = 0.5 * stationary + 0.5 * stationary @ transition  # lazy: never periodic
    logs = np.log(transition, out=np.zeros_like(transition), where=transition > 0)
    rate = -(stationary[:, None] * transition * logs).sum()
    assert rate == pytest.approx(source.entropy_rate, abs=1e-9)


def test_equal_weights_have_the_entropy_of_a_die() -> None:
    assert Markov(successors=5, zipf=0.0).entropy_rate == pytest.approx(math.log(5))
    assert Markov(successors=1).entropy_rate == 0.0


def test_every_symbol_is_one_piece() -> None:
    source = Markov(symbols=800, length=40)
    assert len(set(source.pieces)) == 800
    assert pieces_of("".join(source.pieces)) == source.pieces
    text = source.sample(0)
    assert len(pieces_of(text)) == 40
    assert source.score(text).ends[-1] == len(text)


def test_scores_name_skills_and_cover_the_end(source: Markov) -> None:
    score = source.score(source.sample(3))
    assert score.accepted
    assert [source.skills[s] for s in score.skills[[0, 1, 2, -2, -1]]] == [
        "start", "start", "chain", "chain", "end",
    ]  # fmt: skip
    assert score.nats[0] == pytest.approx(math.log(32))
    assert score.nats[-1] == 0.0


def test_outside_says_where_and_what_was_expected(source: Markov) -> None:
    pieces = pieces_of(source.sample(1))
    beginning = "".join(pieces[:50])
    short = source.score(beginning)
    assert short.outside.piece == "" and short.outside.position == len(beginning)
    assert len(short.nats) == 50
    assert pieces[50] in short.outside.expected
    wrong = next(p for p in source.pieces if p not in short.outside.expected)
    off = source.score(beginning + wrong + "".join(pieces[51:]))
    assert off.outside == (len(beginning), wrong, short.outside.expected)
    long = source.score("".join(pieces) + " a")
    assert long.outside.piece == " a" and long.outside.expected == [""]


def test_same_seed_same_text_everywhere(source: Markov) -> None:
    texts = "\n".join(source.sample(number) for number in range(20))
    assert hashlib.sha256(texts.encode()).hexdigest() == GOLDEN


GOLDEN = "0ad8d257bdb995516e6ad6dbe27151e4e2029bd0674c6c9fc49ed81e71ef9ae9"


def test_splits_and_seeds_differ() -> None:
    source = Markov(documents=3, val_documents=2)
    documents = list(source.documents())
    assert [document.split for document in documents] == ["train"] * 3 + ["val"] * 2
    assert len({document.text for document in documents}) == 5
    other = Markov(seed=1)
    assert other.sample(0) != source.sample(0)
    assert source.score(other.sample(0)).accepted  # the same language
    assert not source.score(Markov(table_seed=1).sample(0)).accepted


@pytest.mark.parametrize("wrong", [{"successors": 33}, {"order": 256}])
def test_contradictions_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Refused):
        Markov(**wrong)
