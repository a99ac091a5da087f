"""conf/: each file says what it is, and lists every key of the class that it configures."""

from dataclasses import MISSING, is_dataclass

import pytest

from llm.config.choices import Choices, conf_folder
from llm.config.root import Experiment
from llm.config.schema import common_keys, dataclass_of, entry_of, locate, schema_of

CHOICES = Choices()
FILES = sorted(CHOICES.files.values())
OPTIONS = CHOICES.options


def relative(file) -> str:
    return file.relative_to(conf_folder()).as_posix()


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_a_file_begins_by_saying_what_it_is(file):
    lines = [x for x in file.read_text().splitlines() if not x.startswith("# @package")]
    assert lines[0].startswith("# ")
    end = next(i for i, line in enumerate(lines) if not line.startswith("# "))
    comment = lines[:end]
    assert len(comment) <= 2, "one or two lines"
    assert comment[-1].endswith("."), "a sentence"


def listed_elsewhere(place: str) -> set[str]:
    """Keys of the node at `place` that the files of its inner groups put there."""
    keys = set()
    for option in OPTIONS:
        mapping = option.mapping_at(place)
        if option.group.startswith(place.replace(".", "/") + "/") and mapping is not None:
            keys |= set(mapping)
        if option.place.rpartition(".")[0] == place:
            keys.add(option.place.rpartition(".")[2])
    return keys


def check_node(node: dict, place: str) -> None:
    target = locate(node["_target_"])
    schema = schema_of(target)
    missing = set(schema.keys) - set(node) - listed_elsewhere(place)
    assert not missing, f"{place} lacks keys of {node['_target_']}"
    for key, parameter in schema.keys.items():
        inner = node.get(key)
        if (
            isinstance(inner, dict)
            and entry_of(parameter.annotation) is None
            and "_target_" in inner
        ):
            check_node(inner, f"{place}.{key}")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: relative(option.file))
def test_a_file_lists_every_key(option):
    if "_target_" in option.node:
        check_node(option.node, option.place)
    elif option.place:  # part of an outer node, such as model/style: the same keys in each
        others = [o for o in OPTIONS if o.group == option.group]
        assert all(set(option.node) == set(o.node) for o in others)


def test_the_top_file_lists_every_section_and_key():
    top = CHOICES.top_node
    for key, parameter in schema_of(Experiment).keys.items():
        section = dataclass_of(parameter.annotation)
        common = set(common_keys(parameter.annotation))
        assert not common or common == set(top[key])
        if section is not None:
            assert is_dataclass(section)
            assert set(top[key]) == set(schema_of(section).keys)
        else:
            assert key in top or key in CHOICES.groups
        assert parameter.default is MISSING, "a default stands in YAML, where people look"
