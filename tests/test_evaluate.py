"""Examinations against hand computations, and against a source whose floor is known."""

import math

import numpy as np
import pytest
import torch

from llm.data.batches import IGNORED
from llm.data.corpus import Document, Outside, Score
from llm.data.prepare import prepare
from llm.evaluate import acceptance, examination, examine
from llm.moe.alarm import CollapseAlarm
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.words import Words
from tests.toy_models import randomised, reading, transformer


class TwoStates:
    """Documents are " a" or " b", then after " a" comes " a" (⅔) or the end (⅓), after " b" the
    end for sure."""

    pieces = (" a", " b")
    dialogue = None
    skills = ("first", "next", "end")

    def describe(self):
        return {"corpus": "two states"}

    def documents(self):
        for i in range(60):
            yield Document(self.sample(i), "val" if i % 3 == 0 else "train")

    def sample(self, seed: int) -> str:
        return " b" if seed % 4 == 0 else " a" * (1 + seed % 5)

    def score(self, text: str) -> Score:
        words = [text[i : i + 2] for i in range(0, len(text), 2)]
        if not words or set(words) - {" a", " b"} or (" b" in words and len(words) > 1):
            return Score(*map(np.array, ([0], [0.0], [0])), Outside(0, text, []))
        nats, skills = [math.log(2)], [0]
        for _ in words[1:]:
            nats.append(math.log(1.5))
            skills.append(1)
        nats.append(0.0 if words[0] == " b" else math.log(3))
        skills.append(2)
        ends = np.cumsum([*map(len, words), 0])
        return Score(ends, np.array(nats), np.array(skills, np.uint8))


def prepared_by(tokenizer, tmp_path, corpus=None):
    corpus = corpus or TwoStates()
    name = type(tokenizer).__name__
    return prepare(corpus, tokenizer, {"_target_": name}, name, tmp_path)


def test_the_floor_is_the_same_in_nats_per_document(tmp_path):
    corpus = TwoStates()
    held_out = [corpus.sample(i) for i in range(0, 60, 3)]
    nats = sum(corpus.score(text).nats.sum() for text in held_out)
    exams = [
        examination(prepared_by(tokenizer, tmp_path), reading(corpus=corpus), None)
        for tokenizer in (Bytes(), Words())
    ]
    for exam in exams:
        assert exam.floor * exam.n_tokens == pytest.approx(nats)
        assert exam.n_bytes == sum(map(len, held_out))
    assert exams[0].n_tokens == sum(len(t) + 1 for t in held_out)
    assert exams[1].n_tokens == sum(len(t) // 2 + 1 for t in held_out)


@pytest.mark.parametrize("limit", [None, 17])
def test_excess_adds_up_over_skills(tmp_path, limit):
    corpus = TwoStates()
    prepared = prepared_by(Words(), tmp_path)
    how = reading(prepared.tokenizer, corpus=corpus)
    exam = examination(prepared, how, limit)
    model = randomised(transformer(vocab_size=prepared.tokenizer.vocab_size, max_seq_len=8))
    metrics = examine(model, exam, how)
    assert metrics["val/floor"] == exam.floor > 0
    assert metrics["val/excess"] == pytest.approx(metrics["val/loss"] - exam.floor)
    by_skill = [metrics[f"val/excess/{name}"] for name in corpus.skills]
    assert sum(by_skill) == pytest.approx(metrics["val/excess"])
    shares = [metrics[f"val/share/{name}"] for name in corpus.skills]
    assert sum(shares) == pytest.approx(1)
    if limit is None:
        assert shares[0] == pytest.approx(20 / exam.n_tokens) == pytest.approx(shares[2])
    assert exam.n_tokens == (limit or exam.n_tokens)


def test_the_truth_has_no_excess(tmp_path):
    """A model that says the source's own probabilities stands on the floor."""
    corpus = TwoStates()
    prepared = prepared_by(Words(), tmp_path)
    tokenizer = prepared.tokenizer
    how = reading(tokenizer, corpus=corpus)
    exam = examination(prepared, how, None)
    a, b = (tokenizer.encode(text)[0] for text in corpus.pieces)

    class Truth(torch.nn.Module):
        embedding = torch.zeros(0)

        def forward(self, tokens_BT, targets_BT, document_ids_BT=None):
            table = torch.full((tokenizer.vocab_size,) * 2, -torch.inf)
            table[tokenizer.eot, [a, b]] = math.log(0.5)
            table[a, a], table[a, tokenizer.eot] = math.log(2 / 3), math.log(1 / 3)
            table[b, tokenizer.eot] = 0.0
            nats = -table[tokens_BT].gather(2, targets_BT.clamp_min(0)[..., None])[..., 0]
            return type("Output", (), {"nats_BT": nats.where(targets_BT != IGNORED, 0.0)})

    metrics = examine(Truth(), exam, how)
    assert metrics["val/excess"] == pytest.approx(0, abs=1e-6)
    assert [metrics[f"val/excess/{n}"] for n in corpus.skills] == pytest.approx([0] * 3, abs=1e-6)


class NoFloat64(torch.Tensor):
    """On a device such as Apple's: float64 is to be had on the CPU alone."""

    @classmethod
    def __torch_function__(cls, function, types, given=(), named=None):
        assert function is not torch.Tensor.double, "MPS has no float64"
        made = super().__torch_function__(function, types, given, named or {})
        return made.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else made


def test_sums_in_float64_are_the_cpus(tmp_path):
    prepared = prepared_by(Bytes(), tmp_path)
    exam = examination(prepared, reading(), None)

    class Even(torch.nn.Module):
        embedding = torch.zeros(0)

        def forward(self, tokens_BT, targets_BT, document_ids_BT=None):
            nats_BT = torch.ones(targets_BT.shape).as_subclass(NoFloat64)
            return type("Output", (), {"nats_BT": nats_BT})

    assert examine(Even(), exam, reading())["val/loss"] == 1
    alarm = CollapseAlarm(1, 10**6)
    for step in range(100):
        alarm.watch(step, torch.full((1, 4), 0.25).as_subclass(NoFloat64))


def test_a_corpus_without_probabilities_has_no_floor(tmp_path):
    class Plain:
        pieces = dialogue = None

        def describe(self):
            return {}

        def documents(self):
            yield Document("some text", "train")
            yield Document("other text", "val")

    prepared = prepared_by(Bytes(), tmp_path, Plain())
    how = reading(corpus=Plain())
    exam = examination(prepared, how, None)
    assert exam.floor is None
    model = transformer(vocab_size=257)
    assert set(examine(model, exam, how)) == {"val/loss", "val/bpb"}
    assert acceptance(model, how, 0) == {}


def test_acceptance_counts_what_the_source_accepts(tmp_path):
    """A model that always writes " b" and stops is accepted; one of noise is not."""
    corpus, prepared = TwoStates(), prepared_by(Words(), tmp_path)
    tokenizer = prepared.tokenizer
    model = transformer("switch", "none", vocab_size=tokenizer.vocab_size, tie_embeddings=False)
    how = reading(tokenizer, corpus=corpus, seq_len=16)
    noise = acceptance(model, how, 0, count=20)
    assert noise["val/accepted"] < 0.2
    width = 16
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.role != "gain":
                parameter.zero_()
        b = tokenizer.encode(" b")[0]
        model.embedding[tokenizer.eot, 0] = model.embedding[b, 1] = 1.0
        model.head.weight[b, 0] = model.head.weight[tokenizer.eot, 1] = 30.0 * width
    sure = acceptance(model, how, 0, count=20)
    assert sure == {"val/accepted": 1.0, "val/accepted_chat": 1.0}
    assert model.training
