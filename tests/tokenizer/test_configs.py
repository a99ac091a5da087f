"""Every YAML file of the room builds the class it names, with arguments that it takes."""

import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llm.tokenizer.base import Tokenizer

CONF = Path(__file__).parents[2] / "conf" / "tokenizer"
FILES = sorted(CONF.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_builds(file):
    assert file.read_text().startswith("# ")
    node = OmegaConf.to_container(OmegaConf.load(file))
    module, _, name = node.pop("_target_").rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    assert isinstance(kind(**node), Tokenizer)
    # `load` makes a tokenizer without arguments; a bare one and the file's are the same.
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    assert defaults == node


def test_all_five_are_there():
    assert [file.stem for file in FILES] == ["bpe", "bytes", "chars", "gpt2", "words"]
