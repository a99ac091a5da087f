"""No passage of a document is trained on while a copy of it is held out."""

import gzip
import json
import os
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.config.errors import Refused
from llm.data.corpus import Document
from llm.data.custom import Custom
from llm.data.mixture import Mixture, Part, fingerprints, prepare_parts
from llm.data.prepare import prepare
from llm.data.splits import HeldOut
from llm.data.texts import Stretch
from llm.tokenizer.bytes import Bytes

NODE = {"_target_": "llm.tokenizer.bytes.Bytes"}


def document(number: int, n_paragraphs: int) -> str:
    """Paragraphs of which each tells where it is from."""
    return "\n\n".join(f"paragraph {i} of document {number}" for i in range(n_paragraphs))


#: Number and length of documents: equal pairs are copies.
COPIES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1, 4, 40])), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(COPIES, st.sampled_from([0.05, 0.1, 0.5]))
def test_in_one_corpus(drawn, fraction):
    lengths = dict(drawn)  # a number has one length
    texts = [document(number, lengths[number]) for number, _ in drawn]
    split = HeldOut(lambda: map(Stretch, texts), fraction)
    sides: dict[str, set[str]] = {"train": set(), "val": set()}
    for part in split.documents():
        sides[part.split] |= set(part.text.split("\n\n"))
    assert all(sides.values())
    assert not sides["train"] & sides["val"] & {p for text in texts for p in text.split("\n\n")}


def texts_of(prepared, split: str) -> list[str]:
    ids, starts = prepared.tokens(split), prepared.document_starts(split)
    ends = [*starts[1:], len(ids) - 1]
    tokenizer = prepared.tokenizer
    return [tokenizer.decode(ids[a + 1 : b]) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_file_and_its_copies_of_other_kinds(tmp_path, fraction):
    """Packed, with Windows' ends of lines and a byte order mark, as a row of .jsonl."""
    text = document(0, 200)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "c.md").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (folder / "d.jsonl").write_text(json.dumps({"text": text}))
    corpus = Custom(path=str(folder), text_column="text", val_fraction=fraction)
    prepared = prepare(corpus, Bytes(), NODE, "copies", tmp_path / "data")
    sides = {split: texts_of(prepared, split) for split in ("train", "val")}
    assert {len(side) for side in sides.values()} == {4}
    assert len(set(sides["train"])) == len(set(sides["val"])) == 1
    assert sides["train"][0] + sides["val"][0] == text
    assert "moved" in prepared.manifest["corpus"]


class Listed:
    """A corpus with splits of its own, as data sets of the hub have them."""

    pieces = dialogue = None

    def __init__(self, **splits: list[str]):
        self.listed = splits

    def describe(self):
        return {"corpus": "listed", **self.listed}

    def documents(self):
        for split, texts in self.listed.items():
            for text in texts:
                yield Document(text, split)


class Drawn(Listed):
    """A corpus that is split by hash."""

    def __init__(self, texts: list[str], fraction: float):
        super().__init__(texts=texts)
        self.held_out = HeldOut(lambda: map(Stretch, texts), fraction)

    def describe(self):
        return self.held_out.described(dict(super().describe()))

    def documents(self):
        return self.held_out.documents()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(COPIES, min_size=2, max_size=3), st.permutations([0.05, 0.1, 0.5]), st.booleans())
def test_in_a_mixture(tmp_path_factory, monkeypatch, drawn, fractions, own_splits):
    """Of parts that hold out other shares, cut other documents, or have splits of their own."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    lengths = dict(chain.from_iterable(drawn))
    corpora = {
        name: Drawn([document(n, lengths[n]) for n, _ in part] + [document(i + 10, 50)], fraction)
        for i, (name, part, fraction) in enumerate(zip("abc", drawn, fractions, strict=False))
    }
    if own_splits:
        one, two, three, four = (document(n, lengths.get(n, 3)) for n in (0, 1, 2, 3))
        corpora["own"] = Listed(train=[one, document(20, 9)], val=[two, three], test=[four])
    mixture = Mixture(parts={n: Part(weight=1, corpus=corpus) for n, corpus in corpora.items()})
    root = tmp_path_factory.mktemp("mixture")
    try:
        prepared = prepare_parts(mixture, Bytes(), NODE, ("mixture", "bytes"), root)
    except Refused as refusal:
        if "all of its training text is held out by other parts" not in str(refusal):
            raise
        return
    sides: dict[str, set[str]] = {"train": set(), "held out": set()}
    for part in prepared.parts.values():
        for split in part.splits:
            side = sides["train" if split == "train" else "held out"]
            for text in texts_of(part, split):
                side |= set(text.split("\n\n"))
    every = {line for number, n in lengths.items() for line in document(number, n).split("\n\n")}
    assert not sides["train"] & sides["held out"] & every
    # found again without being prepared, each part by itself where it shares nothing
    assert fingerprints(mixture, Bytes(), NODE, "bytes", root) == {
        name: part.fingerprint for name, part in prepared.parts.items()
    }
    for name, part in prepared.parts.items():
        alone = prepare(corpora[name], Bytes(), NODE, f"{name}-bytes", root)
        left_out = part.manifest["account"]["left_out"].get("held out by another part", 0)
        assert (alone.fingerprint == part.fingerprint) == (left_out == 0)


def test_copies_in_a_data_set_s_own_splits_are_said(tmp_path):
    same = document(0, 3)
    corpus = Listed(train=[same, document(1, 3), same], val=[same, document(2, 3)])
    prepared = prepare(corpus, Bytes(), NODE, "own", tmp_path)
    (note,) = prepared.manifest["account"]["notes"]
    assert note == "2 training documents held out too, as the corpus has it"
