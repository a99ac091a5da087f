"""What needs more memory than the machine has is said before it is tried, whatever asks for it."""

import pytest

from tests.typist import Typist

#: Fits into the machine of these tests, alone.
SMALL = ["data=markov", "tokenizer=bytes", "hardware=cpu", "hardware.precision=fp32"]


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    monkeypatch.setattr("llm.plan.memory.total_memory", lambda: 2e9)
    monkeypatch.setattr("llm.plan.memory.free_memory", lambda: 1.5e9)
    return Typist(monkeypatch, capsys)


@pytest.mark.parametrize(
    "line",
    [
        "model.max_seq_len=20000",
        "train.batch_size=500",
        "model.n_layers=400 train.batch_size=32",
        "model.d_model=6400 model.n_heads=50",
        "moe.n_experts=4096",
        "model.max_seq_len=2500 model.dropout=0.1",
        "model.max_seq_len=12000 train.batch_size=1 model/position=alibi",
        "tokenizer=gpt2 model.d_model=2048 model.n_heads=16",
    ],
)
def test_what_cannot_fit_is_refused_in_one_line(type_line, line):
    told = type_line.refused(*SMALL, *line.split())
    assert told.startswith("memory: a step takes about ") and "this machine has 2.0 GB" in told


def test_what_may_not_fit_is_said(type_line):
    warned = type_line(*SMALL, "model.max_seq_len=4096")
    assert warned.code == 0 and "memory: a step takes about 2.0 GB" in warned.err
    for saved in ("hardware.recompute=true", "hardware.find_batch=true", "train.batch_size=2"):
        assert "memory" not in type_line(*SMALL, "model.max_seq_len=4096", saved).err
