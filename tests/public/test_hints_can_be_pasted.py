"""A line that a message offers is read by a shell as one word, and by Hydra as what was meant."""

import random
import shlex
import string

import pytest
from omegaconf import OmegaConf

from llm.config.choices import Choices
from llm.config.errors import Refused
from llm.config.jobs import Jobs
from llm.config.overrides import of_text, parse_value, read

CHOICES = Choices()


def value_of(word: str):
    """What a pasted override sets `outputs` to."""
    (typed,) = read(shlex.split(word), CHOICES, False)
    assert typed.key == "outputs"
    return OmegaConf.create({"outputs": parse_value(typed.values[0])})["outputs"]


def test_a_hint_to_quote_sets_the_text_that_was_typed():
    draw = random.Random(0)
    hints = 0
    for _ in range(250):
        text = "".join(draw.choices("ab \"'\\[]{}()$&;:=,*~#%@" + string.digits, k=5))
        assert value_of(of_text("outputs", text)) == text
        try:
            read([f"outputs={text}"], CHOICES, True)
        except Refused as refusal:
            _, quote, hint = str(refusal).partition("quote special characters: ")
            if quote:
                assert value_of(hint) == text
                hints += 1
    assert hints > 40


@pytest.mark.parametrize(
    ("typed", "listed"),
    [
        ("optimizer.betas=0.9,0.95", [0.9, 0.95]),
        ("optimizer.betas=choice(0.5,'a b')", [0.5, "a b"]),
        ("optimizer.betas={head: 1},{gain: [2,3]}", [{"head": 1}, {"gain": [2, 3]}]),
    ],
)
def test_a_hint_to_a_list_is_that_list(typed, listed):
    with pytest.raises(Refused) as refusal:
        read([typed], CHOICES, False)
    hint = str(refusal.value).partition("add -m, or ")[2].removesuffix(" for a list")
    (override,) = read(shlex.split(hint), CHOICES, False)
    assert parse_value(override.values[0]) == listed


def test_options_are_offered_no_list():
    with pytest.raises(Refused, match=r"a sweep; add -m$"):
        read(["moe=dense,topk"], CHOICES, False)


def test_the_label_of_a_job_can_be_typed_again():
    line = ["optimizer.lr_factors={head: 0.5},{gain: 2}", "outputs=a,'b c'", "moe=dense,topk"]
    jobs = Jobs("llm.train", print, CHOICES, read(line, CHOICES, True), True)
    composer = jobs.composer()
    with composer.opened():
        for job in jobs.grid():
            made = jobs.job(0, job, composer)
            again = read(shlex.split(made.swept), CHOICES, False)
            same = composer.job([o.choosing(o.values[0]) for o in again])
            assert (made.raw, made.chosen["moe"]) == (same[0], same[1]["moe"])
