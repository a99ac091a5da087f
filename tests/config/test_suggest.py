"""The nearest valid name."""

import pytest

from llm.config.choices import Choices
from llm.config.suggest import OTHER_NAMES, nearest

CHOICES = Choices()
NAMES = [*CHOICES.groups, *CHOICES.keys]


@pytest.mark.parametrize("key", [key for key in CHOICES.keys if len(key.split(".")[-1]) > 4])
def test_a_key_without_a_letter_or_with_two_swapped_is_still_known(key):
    mistyped = [key[:-2] + key[-1], key[:-3] + key[-2] + key[-3] + key[-1]]
    assert [nearest(name, NAMES) for name in mistyped if name not in NAMES] == [
        key for name in mistyped if name not in NAMES
    ]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_trainers_names_lead_to_names_of_ours(name):
    found = nearest(name, NAMES)
    assert found is not None
    assert found.rpartition(".")[2] == OTHER_NAMES[name]


def test_nothing_near_is_nothing():
    assert nearest("xyzzy", NAMES) is None
