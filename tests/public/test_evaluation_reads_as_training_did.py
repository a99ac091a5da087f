"""`llm.evaluate` gives training's own figure, on any machine, and reads every split in its way.

Document masks and the precision of products once reached only some of the judges.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import llm.evaluate
from llm import load_run
from llm.config.entry import main
from llm.data.mixture import find_prepared
from llm.evaluate_run import main as evaluate
from llm.export import main as export
from llm.hardware.machine import DTYPES
from llm.train import train
from tests.toy import TOY

MASK = "data.document_mask=true"
#: What reads otherwise where a mask is forgotten, documents of a few tokens, and odd batches.
LEARNED = [
    *("model/position=learned", "train.eval_tokens=301", "train.batch_size=3"),
    *("train.budget=4steps", "train.eval_every=2"),
]
MIXTURE = [
    *("data=mixture", "data.parts.tinytown=null", "data.parts.pydoc=null"),
    *("data/parts/one/corpus=custom", "data.parts.one.weight=1"),
    *("data/parts/two/corpus=custom", "data.parts.two.weight=2"),
    *("data.parts.one.corpus.path=one.txt", "data.parts.two.corpus.path=two.txt"),
]
RUNS = {
    "fp32": [MASK, "hardware.precision=fp32"],
    "bf16": ["hardware.precision=bf16", "moe=switch", "moe.capacity_factor=1"],
    "fp16": [MASK, "hardware.precision=fp16", "tokenizer=chars", "moe=dense"],
    "mixture": [MASK, "hardware.precision=bf16", *MIXTURE],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of each line of RUNS, whose texts have moved away since."""
    folder = tmp_path_factory.mktemp("judged")
    draw = np.random.default_rng(0)
    for name in ("text", "one", "two"):
        letters = draw.integers(97, 123, 120)
        documents = (chr(c) * int(draw.integers(2, 40)) + "." for c in letters)
        (folder / f"{name}.txt").write_text("<|endoftext|>".join(documents))
    ids = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("llm.report.observatory.draw_routing", lambda file: None)
        patch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)
        for name, overrides in RUNS.items():
            typed = [text for text in TOY if name != "mixture" or not text.startswith("data")]
            patch.setattr("sys.argv", ["llm.train", *typed, *LEARNED, *overrides])
            before = set(Path("outputs/runs").glob("[!.]*"))
            with pytest.raises(SystemExit) as end:
                main("llm.train", train)
            assert end.value.code == 0
            (made,) = set(Path("outputs/runs").glob("[!.]*")) - before
            ids[name] = made.name
    for file in folder.glob("*.txt"):
        file.rename(file.with_suffix(".gone"))
    return folder, ids


@pytest.fixture(params=RUNS)
def run(request, place, monkeypatch):
    monkeypatch.chdir(place[0])
    return load_run(place[1][request.param])


@pytest.fixture
def judged(monkeypatch, capsys):
    """`llm.evaluate` with these arguments: every digit of its metrics, and standard error."""

    def run(*arguments):
        seen, examine = [], llm.evaluate.examine

        def noting(*given):
            seen.append(examine(*given))
            return seen[-1]

        with monkeypatch.context() as patch:
            patch.setattr("llm.evaluate.examine", noting)
            assert evaluate(list(arguments)) == 0, capsys.readouterr().err
        return seen[-1], capsys.readouterr().err

    return run


def test_it_is_the_runs_own_figure_to_the_last_digit(run, judged, bf16_products):
    metrics, err = judged(f"outputs/runs/{run.folder.name}/checkpoints")
    assert metrics["val/loss"] == run.facts["val_loss"]
    assert metrics["val/bpb"] == run.facts["val_bpb"]
    assert err == ""
    metrics, _ = judged(run.folder.name)
    assert metrics["val/loss"] == run.facts["best_val_loss"]


def counted(run, ids, limit):
    """−log p of each of the first targets, a document at a time, or by rows of whole documents."""
    seq_len, eot = run.config["model"]["max_seq_len"], run.tokenizer.eot
    starts = [place for place, token in enumerate(ids[:-1]) if token == eot]
    pieces: list[list[int]] = []  # what one row reads, without its last target
    for start, end in zip(starts, [*starts[1:], len(ids) - 1], strict=True):
        fits = pieces and len(pieces[-1]) + end - start <= seq_len
        if fits and not run.config["data"]["document_mask"]:
            pieces[-1] += range(start, end)
        else:
            cuts = range(start, end, seq_len)
            pieces += [list(range(cut, min(cut + seq_len, end))) for cut in cuts]
    nats = []
    dtype = DTYPES[run.config["hardware"]["precision"]]
    for places in pieces:
        if places[0] >= limit:
            break
        row = torch.tensor(np.array([ids[place] for place in places], np.int64))[None]
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            log_p = run.model(row).logits_BTV[0].double().log_softmax(-1)
        targets = [(i, int(ids[place + 1])) for i, place in enumerate(places) if place < limit]
        nats += [-log_p[i, target].item() for i, target in targets]
    return nats


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("run", ["fp32", "fp16"], indirect=True)
def test_other_splits_agree_with_an_independent_count(run, judged, split):
    """Of a model whose documents are masked, each document is read by itself."""
    prepared = find_prepared(Path("outputs/data"), run.facts, run.config["data"])
    ids = prepared.tokens(split).tolist()
    metrics, _ = judged(str(run.weights), "--split", split, "--tokens", "250")
    nats = counted(run, ids, 250)
    assert len(nats) == 250
    exact = run.reading.precision == "fp32"
    assert metrics["val/loss"] == pytest.approx(np.mean(nats), abs=2e-5 if exact else 2e-3)


@pytest.mark.parametrize("run", ["bf16"], indirect=True)
def test_where_the_machine_cannot_it_says_so(run, judged, monkeypatch):
    own, _ = judged(str(run.weights))
    monkeypatch.setattr("llm.reading.multiplies", lambda device, precision: precision == "fp32")
    other, err = judged(str(run.weights))
    assert err == "this machine cannot multiply in bf16, as the run did: taking fp32\n"
    assert other["val/loss"] != own["val/loss"]
    assert other["val/loss"] == pytest.approx(own["val/loss"], rel=1e-2)


@pytest.mark.parametrize("run", ["fp16"], indirect=True)
def test_a_run_of_older_code_and_an_export_are_read_alike(run, judged, tmp_path):
    """Without what run.json now stores, it follows from the config; an export brings it along."""
    Path("some.txt").write_text("aaabbb.cc")
    own, _ = judged(str(run.weights), "--text", "some.txt")
    assert run.reading.precision == "fp16" and run.loss("aaabbb.cc") == own["val/loss"]
    facts = dict(run.facts)
    del facts["reading"]
    (run.folder / "run.json").write_text(json.dumps(facts))
    unknown = {"opening": "", "used": ""}  # of a run that has not said it
    assert load_run(run.folder).reading.stored() == {**run.reading.stored(), **unknown}
    assert judged(str(run.weights), "--text", "some.txt")[0] == own
    assert export([str(run.weights), "--to", str(tmp_path / "out")]) == 0
    assert judged(str(tmp_path / "out"), "--text", "some.txt")[0] == own


@pytest.mark.parametrize("run", ["mixture"], indirect=True)
def test_without_tokens_and_text_there_is_nothing_to_read(run, capsys):
    os.rename("outputs/data", "outputs/moved")
    assert evaluate([str(run.weights)]) == 2
    assert "there is no one.txt" in capsys.readouterr().err
    os.rename("outputs/moved", "outputs/data")
