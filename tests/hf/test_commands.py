"""`python -m llm.export` and `python -m llm.evaluate` on a run of a second."""

import json
import math

import pytest

from llm import hf, load_run
from llm.config.entry import main
from llm.evaluate_run import main as evaluate
from llm.export import main as export
from llm.train import train
from tests.toy import TOY


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a run on it, and the run's id."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "text.txt").write_text("the cat sat on the mat and saw a dog who ran to sea. " * 40)
    (folder / "other.txt").write_text("a cat and a dog, e\u0301t\u00e9 \U0001f642")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)
        patch.setattr("sys.argv", ["llm.train", *TOY, "moe=dense"])
        with pytest.raises(SystemExit) as end:
            main("llm.train", train)
        assert end.value.code == 0
    (run,) = (folder / "outputs/runs").glob("tiny-*")
    return folder, run.name


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place[0])
    return place[1]


def told(out: str) -> dict[str, str]:
    return {line[:14].strip(): line[14:] for line in out.splitlines()}


def test_val_is_what_training_said(here, capsys, bf16_products):
    assert evaluate([f"outputs/runs/{here}/checkpoints"]) == 0
    last = told(capsys.readouterr().out)
    facts = load_run(f"outputs/runs/{here}").facts
    assert last["loss"] == f"{facts['val_loss']:.4f} nats a token"
    assert last["bits a byte"] == f"{facts['val_bpb']:.4f}"
    assert float(last["perplexity"]) == pytest.approx(math.exp(facts["val_loss"]), rel=1e-3)
    assert last["on"] == "val, 64 tokens, 64 bytes"
    assert evaluate([here]) == 0
    best = told(capsys.readouterr().out)
    assert best["loss"] == f"{facts['best_val_loss']:.4f} nats a token"
    assert best["by"].startswith(f"best weights of {here}, step ")


def test_other_splits_and_texts(here, capsys):
    assert evaluate([here, "--split", "train", "--tokens", "100"]) == 0
    assert told(capsys.readouterr().out)["on"] == "train, 100 tokens, 100 bytes"
    assert evaluate([here, "--text", "other.txt"]) == 0
    text = told(capsys.readouterr().out)
    n_bytes = len("a cat and a dog, e\u0301t\u00e9 \U0001f642".encode())
    assert text["on"] == f"other.txt, {n_bytes + 1} tokens, {n_bytes} bytes"
    assert export([here, "--to", "public"]) == 0
    capsys.readouterr()
    assert evaluate(["public", "--text", "other.txt"]) == 0
    same = told(capsys.readouterr().out)
    assert {**same, "by": ""} == {**text, "by": ""}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--split", "test"], "--split test: the data has train and val only"),
        (["--text", "nowhere.txt"], "--text: nowhere.txt: No such file or directory"),
        (["--text", "x", "--split", "val"], "--split and --text exclude each other"),
        (["--tokens", "0"], "--tokens: must be a whole number from 1 on"),
        (["--splt", "val"], "there is no flag --splt; did you mean --split?"),
        (["more"], "'more' stands alone; one run is evaluated at a time"),
    ],
)
def test_a_mistake_is_one_line(here, capsys, typed, said):
    assert evaluate([here, *typed]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"llm.evaluate: {said}")
    assert len(err.splitlines()) == 1


def test_an_export_has_all_that_others_look_for(here, tmp_path, capsys):
    to = tmp_path / "mine"
    assert export([here, "--to", str(to)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(to)
    files = {file.name for file in to.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "reading.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocabulary.json",
    }
    card = (to / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert here in card
    assert "validation loss" in card
    assert str(tmp_path) not in card
    assert json.loads((to / "config.json").read_text())["model_type"] == "gpt2"
    run = load_run(f"outputs/runs/{here}", "best")
    for name, tensor in hf.load(to).state_dict().items():
        assert tensor.equal(run.model.state_dict()[name])
    assert export([here, "--to", str(to)]) == 2
    assert f"llm.export: {to} is there already; name a new folder" in capsys.readouterr().err
    assert export([here]) == 2
    assert "--to" in capsys.readouterr().err


def test_a_model_that_no_architecture_has_is_refused_by_key(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place[0])
    monkeypatch.setattr(
        "sys.argv", ["llm.train", *TOY, "moe=dense", "model/position=none", "train.budget=1steps"]
    )
    with pytest.raises(SystemExit):
        main("llm.train", train)
    run = capsys.readouterr().out.splitlines()[-1]
    assert export([run, "--to", str(tmp_path / "x")]) == 2
    line = capsys.readouterr().err
    assert "no public architecture can express this model: model.position._target_=" in line
    assert not (tmp_path / "x").exists()
