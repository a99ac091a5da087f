"""A plan and its run spend the same tokens, and a budget or a text too small for a step is said."""

import json

import pytest

from llm.config.choices import Choices
from llm.config.jobs import Jobs
from llm.config.overrides import read
from llm.plan.calibrate import plan
from tests.toy import TOY


def planned(*line: str):
    jobs = Jobs("llm.plan", print, Choices(), read([*TOY, *line], Choices(), True), True)
    (job,) = plan(jobs, False)
    return job


@pytest.mark.parametrize(
    ("line", "tokens", "told"),
    [
        (["train.budget=2epochs", "train.batch_size=1", "model.max_seq_len=2"], 62, []),
        (["train.budget=1epochs", "train.batch_size=3"], 48, ["1epochs is less than one step"]),
        (
            ["train.budget=1flops", "model.max_seq_len=64"],
            128,
            ["1e0flops is less than one step", "shorter than one row (31 of 64 tokens)"],
        ),
    ],
)
def test_what_is_planned_is_trained(llm_train, workplace, line, tokens, told):
    (workplace / "text.txt").write_text("the quick brown fox jumps over it.")
    ended = llm_train(*line)
    assert json.loads((ended.folder / "run.json").read_text())["tokens"] == tokens
    job = planned(*line)
    assert job.tokens == tokens
    assert len(job.caveats) == len(told)
    for caveat, words in zip(job.caveats, told, strict=True):
        assert words in caveat and caveat in ended.err


def test_parts_without_weight_are_no_part_of_an_epoch(llm_train, workplace):
    (workplace / "text.txt").write_text("the quick brown fox jumps over it.")
    (workplace / "other.txt").write_text("she sells sea shells by the sea shore " * 9)
    parts = [
        word
        for name, file in (("a", "text.txt"), ("b", "other.txt"))
        for word in (f"data/parts/{name}/corpus=custom", f"data.parts.{name}.corpus.path={file}")
    ]
    line = ["data=mixture", *parts, "data.parts.a.weight=1", "data.parts.b.weight=0"]
    line += ["data.parts.tinytown=null", "data.parts.pydoc=null", "train.budget=9epochs"]
    ended = llm_train(*line)
    assert json.loads((ended.folder / "run.json").read_text())["tokens"] == planned(*line).tokens
