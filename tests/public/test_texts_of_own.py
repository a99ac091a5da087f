"""A model of one's own text begins as that text begins, and writes no id that it has not.

Behind an end-of-text that was met once an epoch, and from ids that were never met, comes noise.
"""

import json

import numpy as np
import pytest
import torch

import llm
from llm.data import beginnings
from llm.data.corpus import Document
from llm.data.mixture import PreparedMixture
from llm.data.prepare import prepare
from llm.generate.engine import Engine, Request
from llm.tokenizer.bytes import Bytes
from tests.toy_models import VOCAB, experts, randomised, transformer


def prepared(folder, texts: list[str], held_out: str):
    class Corpus:
        pieces = dialogue = None

        def describe(self):
            return {"texts": texts}

        def documents(self):
            yield from (Document(text, "train") for text in texts)
            yield Document(held_out, "val")

    return prepare(Corpus(), Bytes(), {}, "own", folder)


@pytest.mark.parametrize(
    ("documents", "held_out", "opening"),
    [
        (1, "It was a dark and stormy night; the rain fell in torrents", "It was a dark and"),
        (99, "  漢字 " * 20, "  漢字   漢字   漢字   漢字"),
        (3, "short", "short"),
        (3, "x" * 80, "x" * 48),
        (100, "It was a dark night", ""),
    ],
)
def test_few_documents_have_an_opening(tmp_path, documents, held_out, opening):
    found = beginnings.opening(prepared(tmp_path, ["ab\n"] * documents, held_out), 100)
    assert found.startswith(opening) if opening else found == ""
    assert held_out.startswith(found)
    assert len(beginnings.opening(prepared(tmp_path, ["ab\n"] * documents, held_out), 4)) <= 4


def test_ids_are_those_of_the_training_text(tmp_path, monkeypatch):
    monkeypatch.setattr(beginnings, "_STRETCH", 3)
    first = prepared(tmp_path / "a", ["cab", "bad"], "zz")
    other = prepared(tmp_path / "b", ["xyx"], "zz")

    def used(corpus):
        return Bytes().decode(np.flatnonzero(beginnings.used_ids(corpus)).tolist())

    assert used(first) == "abcd"
    assert beginnings.used_ids(first)[Bytes.eot]
    assert used(PreparedMixture({"a": first, "b": other}, {"a": 1.0, "b": 2.0})) == "abcdxy"
    assert used(PreparedMixture({"a": first, "b": other}, {"a": 0.0, "b": 2.0})) == "xy"


@pytest.mark.parametrize("temperature", [0, 0.1, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 100])
def test_nothing_else_is_drawn(temperature, top_k):
    model, allowed_V = (
        randomised(transformer(experts(4, 2), "rope")).eval(),
        torch.arange(VOCAB) < 5,
    )
    engine = Engine(model, 3, allowed_V=allowed_V)
    requests = [Request([1, 2, 3], 99, temperature, top_k, key=key) for key in range(3)]
    for answer in engine.generate(requests):
        assert set(answer.tokens) <= set(range(5))
        assert answer.reason == "context" and len(answer.tokens) == model.max_seq_len - 2
        if temperature == 0:
            context = [1, 2, 3]
            for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
                logits_V = model(torch.tensor([context])).logits_BTV[0, -1]
                assert token == int(logits_V[:5].argmax())
                assert logprob == pytest.approx(float(logits_V.log_softmax(-1)[token]), abs=1e-4)
                context.append(token)


def test_samples_and_chat_of_a_run_keep_to_both(llm_train, toy_text):
    ended = llm_train("train.budget=2steps", "train.sample_every=1")
    told = json.loads((ended.folder / "run.json").read_text())["reading"]
    assert f"prompt           {told['opening']!r}, from the validation text" in ended.out
    run = llm.load_run(ended.folder)
    known = set(toy_text.read_text())
    for text in ("", "the cat", "ÄÖ"):
        assert set(run.generate(text, 60, temperature=2.0, top_k=None, seed=1)) <= known
    assert "\ufffd" not in ended.out + ended.err
