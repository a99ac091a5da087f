"""`python -m llm.tokenizer`: trains, shows, and leaves what a run then finds."""

import re

import pytest

from llm.config.entry import main
from llm.tokenizer.__main__ import show
from llm.tokenizer.base import load


@pytest.fixture
def tokenizer_command(toy_text, monkeypatch, capsys):
    def run(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llm.tokenizer", *overrides])
        with pytest.raises(SystemExit) as end:
            main("llm.tokenizer", show)
        return end.value.code, *capsys.readouterr()

    return run


TOY = ["data=custom", "data.path=text.txt", "tokenizer=bpe", "tokenizer.vocab_size=300"]


def test_it_trains_and_shows_the_vocabulary(tokenizer_command, toy_text, monkeypatch):
    code, out, err = tokenizer_command(*TOY)
    assert code == 0, err
    (folder,) = toy_text.parent.glob("outputs/data/custom-bpe-*")
    tokenizer = load(folder)
    assert f"vocabulary     {tokenizer.vocab_size} ids (bpe)" in out
    # text.txt has one document, so the validation split is its end
    text = toy_text.read_text()
    held_out = text[int(len(text) * 0.9) :]
    n_tokens = len(tokenizer.encode(held_out))
    assert f"{len(held_out) / n_tokens:.3f} on the validation split: {len(held_out)} bytes" in out
    longest = max((tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)), key=len)
    assert longest.decode().replace(" ", "␣") in out.split("longest")[1].splitlines()[0]
    sample = out.strip().splitlines()[-1]
    assert sample.replace("|", "").replace("␣", " ").startswith(held_out[:40])
    assert "\033" not in out
    stamp = folder.stat().st_mtime_ns
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, coloured, _ = tokenizer_command(*TOY)
    assert folder.stat().st_mtime_ns == stamp
    assert re.sub(r"\033\[[0-9;]*m", "", coloured.splitlines()[-1]) == sample.replace("|", "")


def test_parts_of_a_mixture_share_one_vocabulary(tokenizer_command, toy_text):
    overrides = [
        "data=mixture",
        "data.parts.tinytown=null",
        "data/parts/mine/corpus=custom",
        "data.parts.mine.corpus.path=text.txt",
        "data.parts.mine.weight=1",
    ]
    code, out, err = tokenizer_command(*overrides, *TOY[2:])
    assert code == 0, err
    states = [load(f).state() for f in toy_text.parent.glob("outputs/data/[!.]*-bpe-*")]
    assert len(states) == 2 and states[0] == states[1]
    assert "split of mine" in out and "split of pydoc" in out
    # the same files for other weights
    before = sorted(toy_text.parent.glob("outputs/data/[!.]*"))
    assert tokenizer_command(*overrides, *TOY[2:], "data.parts.mine.weight=0.2")[0] == 0
    assert sorted(toy_text.parent.glob("outputs/data/[!.]*")) == before
