"""`python -m llm.prepare`: the same overrides and refusals as training, and the same data."""

import json

import pytest

from llm.data.__main__ import main
from llm.prepare import run
from tests.typist import Typist

CUSTOM = ["data=custom", "data.path=text.txt", "tokenizer=bytes"]


def test_it_prints_what_it_made_and_training_takes_it(llm_train, monkeypatch, capsys):
    ended = Typist(monkeypatch, capsys)(*CUSTOM, task=run)
    assert ended.code == 0, ended.err
    folder = ended.folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert f"train      {manifest['splits']['train']['tokens']:,} tokens" in ended.out
    assert "tokenizer  Bytes 257 ids" in ended.out
    made = (folder / "train.bin").stat().st_mtime_ns
    assert llm_train().code == 0
    assert [f.name for f in folder.parent.glob("[!.]*/")] == [folder.name]
    assert (folder / "train.bin").stat().st_mtime_ns == made
    assert main(["verify"]) == 0


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["data.val_fracton=0.2"], "did you mean data.val_fraction?"),
        (["data.on_encoding_error=ignore"], "one of refuse, replace"),
        (["data.path=nowhere"], "data.path=nowhere: there is no nowhere"),
        (
            ["data=hub", "data.path=null"],
            "data.repo: name a data set of the hub: data.repo=ORG/NAME",
        ),
        (["data=tinystories", "data.num_samples=0"], "data.num_samples=0: is 0, and must be"),
    ],
)
def test_refusals_are_those_of_training(toy_text, monkeypatch, capsys, typed, said):
    ended = Typist(monkeypatch, capsys)(*CUSTOM, *typed, task=run)
    assert ended.code == 2
    assert said in ended.err and len(ended.err.splitlines()) == 1


def test_a_refusal_in_the_middle_of_the_text_is_one_line(toy_text, monkeypatch, capsys):
    toy_text.write_bytes(b"fine\n" * 10 + b"\xff")
    ended = Typist(monkeypatch, capsys)(*CUSTOM, task=run)
    assert ended.code == 2
    assert "text.txt, line 11: is not UTF-8" in ended.err and len(ended.err.splitlines()) == 1
    again = Typist(monkeypatch, capsys)(*CUSTOM, "data.on_encoding_error=replace", task=run)
    assert again.code == 0 and "replaced 1" in again.out
