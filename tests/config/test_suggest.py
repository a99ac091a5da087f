"""The nearest valid name."""

import pytest

from llm.config.choices import Choices
from llm.config.suggest import OTHER_NAMES, nearest

CHOICES = Choices()
NAMES = [*CHOICES.groups, *CHOICES.keys]


@pytest.mark.parametrize("key", CHOICES.keys)
def test_a_key_without_a_letter_is_still_known(key):
    section, dot, leaf = key.rpartition(".")
    for cut in range(len(leaf) if len(leaf) > 4 else 0):
        mistyped = section + dot + leaf[:cut] + leaf[cut + 1 :]
        if mistyped not in NAMES:
            assert nearest(mistyped, NAMES) == key


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_trainers_names_lead_to_names_of_ours(name):
    found = nearest(name, NAMES)
    assert found is not None
    assert found.rpartition(".")[2] == OTHER_NAMES[name]


def test_nothing_near_is_nothing():
    assert nearest("xyzzy", NAMES) is None
