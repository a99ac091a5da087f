"""The data contract of DESIGN.md.

A token shard knows what made it and its checksum; the order of batches is a pure function of
(seed, step), so position is a number, resume is O(1), and the order is the same for any split.
"""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from llm.data.batches import TrainOrder
from llm.data.custom import Custom
from llm.data.prepare import open_prepared, prepare
from llm.tokenizer.bytes import Bytes
from llm.tokenizer.words import Words
from llm.tracking.log import MetricLog
from llm.tracking.progress import brief

NODE = {"_target_": "llm.tokenizer.bytes.Bytes"}


@pytest.fixture
def corpus(tmp_path):
    for i in range(30):
        words = " ".join(f"word{(i * j) % 17}" for j in range(5 + i))
        (tmp_path / f"{i}.txt").write_text(f"document {i}: {words}")
    return Custom(path=str(tmp_path), text_column="text", val_fraction=0.2)


def test_a_shard_knows_what_made_it_and_its_checksum(corpus, tmp_path):
    prepared = prepare(corpus, Bytes(), NODE, "custom-bytes", tmp_path / "data")
    manifest = prepared.manifest
    assert manifest["corpus"] == corpus.describe()
    assert manifest["fingerprint"] in prepared.folder.name
    for name, facts in manifest["files"].items():
        content = (prepared.folder / name).read_bytes()
        assert facts["size"] == len(content)
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert {p.name for p in prepared.folder.iterdir()} == {*manifest["files"], "manifest.json"}


def test_the_same_text_makes_the_same_bytes(corpus, tmp_path):
    made = [
        prepare(corpus, Words(), {"_target_": "words"}, "custom", tmp_path / root)
        for root in ("one", "two")
    ]
    assert made[0].fingerprint == made[1].fingerprint
    # The account also counts what lies beside the text: here, what was prepared before.
    one, other = ({k: v for k, v in p.manifest.items() if k != "account"} for p in made)
    assert one == other


def test_no_held_out_document_is_trained_on(corpus, tmp_path):
    prepared = prepare(corpus, Bytes(), NODE, "custom", tmp_path / "data")
    sides = {}
    for split in ("train", "val"):
        ids, starts = prepared.tokens(split), prepared.document_starts(split)
        ends = [*starts[1:], len(ids) - 1]
        texts = [
            prepared.tokenizer.decode(ids[a + 1 : b]) for a, b in zip(starts, ends, strict=True)
        ]
        sides[split] = set(texts)
        assert (ids[starts] == prepared.tokenizer.eot).all() and ids[-1] == prepared.tokenizer.eot
    assert not sides["train"] & sides["val"]
    assert sides["train"] | sides["val"] == {d.text for d in corpus.documents()}


def test_order_is_a_function_of_seed_and_step(corpus, tmp_path):
    """Any batch size, any split into micro-steps or ranks, a resume anywhere: the same rows."""
    ids = prepare(corpus, Bytes(), NODE, "custom", tmp_path / "data").tokens("train")
    rows = 24
    whole = TrainOrder(ids, 16, seed=3).rows(0, 4 * rows)
    for micro in (1, 2, 3, 8, 24):
        resumed = TrainOrder(np.array(ids), 16, seed=3)
        for step in (3, 0, 2):  # in any order
            for part in range(rows // micro):
                first = step * rows + part * micro
                batch = resumed.rows(first, micro)
                for mine, theirs in zip(batch, whole, strict=True):
                    assert (mine == theirs[first : first + micro]).all()
    other = TrainOrder(ids, 16, seed=4).rows(0, 4 * rows)
    assert (other.places_RT != whole.places_RT).mean() > 0.9


def test_every_target_once_an_epoch_and_another_order_the_next(corpus, tmp_path):
    ids = prepare(corpus, Bytes(), NODE, "custom", tmp_path / "data").tokens("train")
    order, n = TrainOrder(ids, 16, seed=0), len(ids) - 1
    read = order.rows(0, -(-3 * n // 16)).places_RT.ravel()
    epochs = [read[e * n : (e + 1) * n] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    assert (epochs[0] != epochs[1]).mean() > 0.9


def test_getting_to_a_far_step_costs_nothing():
    order = TrainOrder(np.zeros(10_000, np.uint16), 128, 0)
    begun = time.process_time()
    order.rows(10**12, 16)
    assert time.process_time() - begun < 0.5


def test_a_run_counts_what_it_read(llm_train, toy_text):
    """Tokens, documents and epochs, over the ends of epochs, documents kept apart."""
    toy_text.write_text("the cat sat on the mat. " * 10)
    ended = llm_train("train.budget=3epochs", "train.eval_every=1000", "data.document_mask=true")
    assert ended.code == 0, ended.err
    rows = MetricLog.read(ended.folder / "metrics.jsonl")
    (data,) = Path("outputs/data").glob("[!.]*")
    n = len(open_prepared(data).tokens("train")) - 1
    assert [row["tokens"] for row in rows] == [32 * row["step"] for row in rows]
    assert all(row["data/epoch"] == pytest.approx(row["tokens"] / n) for row in rows)
    assert 3 <= rows[-1]["data/epoch"] < 3 + 32 / n
    # the one document has been read as often as it was read to its end
    assert all(abs(row["data/documents"] - row["data/epoch"]) < 1 for row in rows)
    assert rows[-1]["data/documents"] in (3, 4)
    assert f"epoch {rows[-1]['data/epoch']:.3g}, {brief(rows[-1]['tokens'])} tokens" in ended.err
