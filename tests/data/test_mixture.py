"""Several corpora as one: typed, prepared with one vocabulary, read in proportion, judged apart."""

import json
import math

import numpy as np
import pytest
import torch

from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.data.batches import IGNORED
from llm.data.corpus import Document
from llm.data.mixture import Mixture, Part, prepare_parts, training_order
from llm.data.prepare import Prepared
from llm.evaluate import examination, examine
from llm.tokenizer.bpe import BPE
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.chars import Chars
from tests.toy_models import reading
from tests.typist import Typist

NODE = {"_target_": "a tokenizer"}


class Letters:
    """Documents of one letter."""

    pieces = dialogue = None

    def __init__(self, letter: str, count: int):
        self.letter, self.count = letter, count

    def describe(self):
        return {"letter": self.letter, "count": self.count}

    def documents(self):
        for i in range(self.count):
            yield Document(self.letter * (i % 5 + 1), "train" if i % 3 else "val")


def mixture(**weights: float) -> Mixture:
    letters = {"a": Letters("a", 30), "b": Letters("b", 90), "c": Letters("ç", 60)}
    return Mixture(parts={n: Part(weight=w, corpus=letters[n]) for n, w in weights.items()})


@pytest.mark.parametrize("kind", [BPE, Chars])
def test_parts_share_a_vocabulary_whatever_their_weights(tmp_path, kind):
    names = ("mixture", "kind")
    one = prepare_parts(mixture(a=1, c=3), kind(), NODE, names, tmp_path)
    other = prepare_parts(mixture(c=0.5, a=0.5), kind(), NODE, names, tmp_path)
    assert one.fingerprint == other.fingerprint
    assert one.parts == other.parts
    assert one.parts["a"].tokenizer.state() == one.parts["c"].tokenizer.state()
    third = prepare_parts(mixture(a=1, b=3), kind(), NODE, names, tmp_path)
    assert third.parts["a"].fingerprint != one.parts["a"].fingerprint  # another vocabulary
    text = one.tokenizer.decode(one.parts["c"].tokens("train"))
    assert set(text) == {"ç"}


def test_a_tokenizer_without_fit_finds_what_was_prepared_alone(tmp_path):
    alone = prepare_parts(Letters("a", 30), Bytes(), NODE, ("a", "bytes"), tmp_path)
    both = prepare_parts(mixture(a=1, b=1), Bytes(), NODE, ("mixture", "bytes"), tmp_path)
    assert both.parts["a"].folder == alone.folder


def test_tokens_are_read_in_proportion(tmp_path):
    prepared = prepare_parts(mixture(a=0.3, b=0.7, c=0), Bytes(), NODE, ("m", "bytes"), tmp_path)
    batch = training_order(prepared, 8, seed=1).rows(10**6, 40)
    of = {
        name: np.isin(batch.tokens_RT, [ord(name), 256]).all(1)
        & (batch.tokens_RT == ord(name)).any(1)
        for name in "ab"
    }
    assert (of["a"].sum(), of["b"].sum()) == (12, 28)


def test_a_part_of_an_earlier_version_may_share_text_and_says_so(tmp_path, monkeypatch, capsys):
    prepare_parts(mixture(a=1, b=1), Bytes(), NODE, ("m", "bytes"), tmp_path)
    assert "earlier version" not in capsys.readouterr().err
    monkeypatch.setattr(Prepared, "keys", lambda self, split: None)
    prepare_parts(mixture(a=1, b=1), Bytes(), NODE, ("m", "bytes"), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [line[0] for line in lines] == ["a", "b"]
    assert all("prepared by an earlier version" in line and "; delete " in line for line in lines)


class Even(torch.nn.Module):
    """Costs each target as many nats as its id says, in thousandths."""

    embedding = torch.zeros(0)

    def forward(self, tokens_BT, targets_BT, document_ids_BT=None):
        self.documents_BT = document_ids_BT
        from llm.model.transformer import Output

        return Output(nats_BT=targets_BT.clamp(0) / 1000)


def test_each_part_is_judged_apart_and_all_together(tmp_path):
    parts = mixture(a=0, b=5)
    prepared = prepare_parts(parts, Bytes(), NODE, ("m", "bytes"), tmp_path)
    for limit in (None, 20):
        exam = examination(prepared, reading(), limit)
        metrics = examine(Even(), exam, reading())
        total = n_tokens = 0
        for name in "ab":
            held_out = prepared.parts[name].tokens("val")[1:][: limit and limit // 2]
            assert metrics[f"val/loss/{name}"] == pytest.approx(held_out.mean() / 1000)
            nats = held_out.sum() / 1000
            n_bytes = (held_out != 256).sum()
            assert metrics[f"val/bpb/{name}"] == pytest.approx(nats / math.log(2) / n_bytes)
            total, n_tokens = total + nats, n_tokens + len(held_out)
        assert metrics["val/loss"] == pytest.approx(total / n_tokens)
    same = examination(
        prepare_parts(mixture(a=3, b=1), Bytes(), NODE, ("m", "bytes"), tmp_path), reading(), 20
    )
    assert (same.rows.targets_RT == exam.rows.targets_RT).all()
    assert (exam.rows.targets_RT != IGNORED).sum() == 20


def test_a_constructor_refuses_what_cannot_be_read():
    with pytest.raises(Refused, match="parts: give a corpus a weight"):
        Mixture(parts={"a": None})
    with pytest.raises(Refused, match="weight"):
        mixture(a=0, b=0)
    inner = Part(weight=1, corpus=mixture(a=1))
    with pytest.raises(Refused, match=r"parts\.m\.corpus"):
        Mixture(parts={"m": inner})


# As it is typed

OWN = ["data=mixture", "data/parts/mine/corpus=custom", "data.parts.mine.corpus.path=text.txt"]


@pytest.fixture
def type_line(toy_text, monkeypatch, capsys):
    return Typist(monkeypatch, capsys)


def test_any_corpus_can_be_a_part(type_line):
    node = type_line.accepted(
        *OWN, "data.parts.mine.weight=0.25", "data.parts.pydoc=null", "tokenizer=bytes"
    ).config["data"]
    assert list(node["parts"]) == ["tinytown", "pydoc", "mine"]
    assert node["parts"]["mine"]["weight"] == 0.25
    made = instantiate(node, "data")
    assert made.weights == {"mine": 0.25, "tinytown": 0.5}
    assert str(made.corpora["mine"].path).endswith("text.txt")
    assert made.dialogue is made.corpora["tinytown"].dialogue is not None
    assert json.dumps(made.corpora["mine"].describe())
    node = type_line.accepted("data=mixture", "data/parts/pydoc/corpus=markov", "tokenizer=bytes")
    assert node.config["data"]["parts"]["pydoc"]["corpus"]["_target_"].endswith("Markov")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["data/parts/mine/corpus=custm"], "did you mean data=custom"),
        (["data/parts/mine/corups=custom"], "there is no group data/parts/mine/corups"),
        (["data/parts/mine/corpus=custom"], "data.parts.mine.weight: is missing"),
        (["data.parts.mien.weight=3"], "data.parts.mien.corpus: is missing"),
        (["data.parts.pydoc.weight=-3"], "must be at least 0"),
        (["data.parts.pydoc.corpus.val_fracton=0.3"], "did you mean data.parts.pydoc.corpus.val_f"),
        (["data.parts.pydoc=null", "data.parts.tinytown=null"], "data.parts"),
        (["data.parts=3"], "data.parts=3: is not a mapping"),
        (["data.parts.pydoc.document_mask=true"], "no such key"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(type_line, typed, line):
    assert line in type_line.refused("data=mixture", *typed)


def test_a_part_without_a_mixture_has_no_effect(type_line):
    """As grids over data=mixture,pydoc produce it."""
    line = "data.parts.pydoc.weight=0.2"
    plain = type_line.accepted("data=pydoc", "tokenizer=bytes")
    with_part = type_line.accepted("data=pydoc", "tokenizer=bytes", line)
    assert with_part.validated.identity == plain.validated.identity
    assert any("no effect" in note for note in with_part.validated.notes)


def test_every_option_has_a_document_mask_and_the_run_is_another(type_line):
    plain, masked = (
        type_line.accepted("data=pydoc", "tokenizer=bytes", f"data.document_mask={value}")
        for value in ("false", "true")
    )
    assert plain.validated.identity["data"]["document_mask"] is False
    assert masked.validated.identity["data"]["document_mask"] is True
    assert "document_mask=7" in type_line.refused("data.document_mask=7")
