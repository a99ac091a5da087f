"""The nearest valid name."""

import pytest

from llm.config.choices import Choices
from llm.config.suggest import OTHER_NAMES, nearest

CHOICES = Choices()
NAMES = [*CHOICES.groups, *CHOICES.keys]


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_key_without_a_letter_or_with_two_swapped_is_still_known(half):
    long = [key for key in CHOICES.keys if len(key.split(".")[-1]) > 4]
    lacking = [(key[:-2] + key[-1], key) for key in long[half::2]]
    swapped = [(key[:-3] + key[-2] + key[-3] + key[-1], key) for key in long[1 - half :: 2]]
    mistyped = [(name, key) for name, key in [*lacking, *swapped] if name not in NAMES]
    assert len(mistyped) > 100
    assert [(name, nearest(name, NAMES)) for name, _ in mistyped] == mistyped


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_trainers_names_lead_to_names_of_ours(name):
    found = nearest(name, NAMES)
    assert found is not None
    assert found.rpartition(".")[2] == OTHER_NAMES[name]


def test_nothing_near_is_nothing():
    assert nearest("xyzzy", NAMES) is None
