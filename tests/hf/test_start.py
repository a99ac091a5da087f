"""`model.init_from`: training that starts from a run, or from a folder of public format."""

import json

import pytest
import torch

from llm import hf, load_run
from llm.config.entry import main
from llm.export import main as export
from llm.train import train
from tests.hf.foreign import write_gpt2
from tests.toy import TOY, Ended

#: A toy whose model nothing says.
SILENT = [override for override in TOY if not override.startswith("model")]
#: Steps that move nothing.
STILL = ["train.budget=1steps", "optimizer=adamw", "optimizer.lr=1e-12"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a run on it (its id), and the run's export, `public`."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "text.txt").write_text("the cat sat on the mat and saw a dog who ran to sea. " * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = ["model/style=llama", "model/position=rope", "moe=topk", "model.n_kv_heads=1"]
        patch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)  # half of the time
        patch.setattr("llm.report.observatory.draw_routing", lambda file: None)
        patch.setattr("sys.argv", ["llm.train", *TOY, *model])
        with pytest.raises(SystemExit) as end:
            main("llm.train", train)
        assert end.value.code == 0
        (run,) = (folder / "outputs/runs").glob("tiny-topk-*")
        assert export([run.name, "--to", "public"]) == 0
    return folder, run.name


@pytest.fixture
def start(place, monkeypatch, capsys):
    """Train from something: call it with what `model.init_from` names, and overrides."""
    monkeypatch.chdir(place[0])
    monkeypatch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)
    monkeypatch.setattr("llm.report.observatory.draw_routing", lambda file: None)

    def run(name: str, *overrides: str, base=SILENT) -> Ended:
        capsys.readouterr()
        typed = [*base, *STILL, *overrides, f"model.init_from={name}"]
        monkeypatch.setattr("sys.argv", ["llm.train", *typed])
        with pytest.raises(SystemExit) as end:
            main("llm.train", train)
        return Ended(end.value.code, *capsys.readouterr())

    return run


def test_a_run_and_its_export_are_the_same_start(start, place):
    wanted = load_run(place[0] / "outputs/runs" / place[1], "best")
    assert set(wanted.metrics[0]) >= {"step", "tokens"}
    found = []
    for name in ("public", place[1], place[1][-6:]):
        ended = start(name)
        assert ended.code == 0, ended.err
        run = load_run(ended.folder)
        for key, tensor in wanted.model.state_dict().items():
            torch.testing.assert_close(run.model.state_dict()[key], tensor, atol=1e-6, rtol=0)
        assert run.config["model"] | {"init_from": None} == wanted.config["model"] | {
            "init_from": None
        }
        found.append(run)
    assert found[0].facts["init_from"] == found[1].facts["init_from"]
    assert found[0].folder.name.startswith("from_public-custom-")
    assert found[1].folder.name.startswith(f"from_{place[1]}-custom-")
    assert found[2].folder == found[1].folder  # it answers
    assert start("public").err.count("going on") == 0  # the same command answers at once


def test_other_weights_are_another_run(start, place, tmp_path):
    one = start("public").folder.name
    model = hf.load("public")
    with torch.no_grad():
        model.embedding[0, 0] += 1
    hf.save(model, tmp_path / "public", hf.load_tokenizer("public"))
    two = start(str(tmp_path / "public"))
    assert two.folder.name != one
    assert two.folder.name.startswith("from_public-custom-")


def test_a_longer_context_is_one_override(start):
    """Train at L, go on at s·L: keys beside the start that learn nothing anew."""
    ended = start("public", "model/position=rope_yarn", "model.max_seq_len=64")
    assert ended.code == 0, ended.err
    node = load_run(ended.folder).config["model"]
    assert (node["max_seq_len"], node["n_kv_heads"], node["dropout"]) == (64, 1, 0.0)
    assert node["position"]["_target_"].endswith("RopeYarn")
    ended = start("public", "model.dropout=0.1", "model.max_seq_len=8")
    assert ended.code == 0, ended.err
    assert load_run(ended.folder).config["model"]["dropout"] == 0.1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.n_layers=3"], "model.n_layers=3: is 3, and "),
        (["model.n_kv_heads=2"], "model.n_kv_heads=2: is 2, and "),
        (["moe.top_k=1", "moe.router.renormalize=false"], "moe.top_k=1: is 1, and "),
        (["model/position=learned"], "model.position._target_: is llm.model.position.Learned, and"),
        (["model/position=rope", "model.position.base=5"], "model.position.base=5: is 5.0, and"),
        (["model.window=4"], "model.window=4: is 4, and "),
        (["model=gpt2"], "model.position._target_: is llm.model.position.Learned, and "),
        (["tokenizer=chars"], "tokenizer: has 17 ids, and the weights 257; take the tokenizer"),
        (["model.n_layrs=3"], "model.n_layrs=3: no such key; did you mean model.n_layers?"),
    ],
)
def test_what_contradicts_the_start_is_refused_by_name(start, overrides, said):
    ended = start("public", *overrides)
    assert (ended.code, ended.out) == (2, "")
    *account, line = ended.err.splitlines()
    assert line.startswith(f"llm.train: {said}")
    assert len(account) == (overrides == ["tokenizer=chars"])  # a text that is read anew


def test_experts_start_as_copies_of_a_dense_model(start, tmp_path):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=257)
    ended = start(str(folder), "moe=switch", "moe.init=upcycle", "model.max_seq_len=8")
    assert ended.code == 0, ended.err
    run, dense = load_run(ended.folder), hf.load(folder)
    experts = run.model.blocks[1].feed_forward.experts
    wanted = dense.blocks[1].feed_forward.up.weight.T.expand_as(experts.up_EDF)
    torch.testing.assert_close(experts.up_EDF, wanted, atol=1e-6, rtol=0)
    assert run.config["moe"]["n_experts"] == 4
    typed = ["moe=switch", "model.max_seq_len=8"]
    assert "moe._target_: is llm.moe.layer.MoE, and" in start(str(folder), *typed).err


def test_nothing_there(start):
    ended = start("nowhere")
    assert ended.code == 2
    assert ended.err.startswith("llm.train: model.init_from=nowhere: there is no run nowhere in ")


def test_from_somebody_elses_gpt2(start, tmp_path):
    """Names without prefix, masks among the weights, no tokenizer of ours: ids are compared."""
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=257)
    ended = start(str(folder), "model.max_seq_len=8")
    assert ended.code == 0, ended.err
    run = load_run(ended.folder)
    wanted = hf.load(folder)
    torch.testing.assert_close(run.model.embedding, wanted.embedding, atol=1e-6, rtol=0)
    table = wanted.position.weight[:8]  # of 32 positions, those that are used
    torch.testing.assert_close(run.model.position.weight, table, atol=1e-6, rtol=0)
    longer = start(str(folder), "model.max_seq_len=64")
    assert longer.code == 2
    assert "model.max_seq_len=64: is 64, and" in longer.err
    assert "learned positions cannot be extended" in longer.err

    vocabulary = {chr(65 + i) * 2: i for i in range(257)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    other = start(str(folder), "model.max_seq_len=8")
    assert other.code == 2
    assert "tokenizer: id 0 is b'\\x00', and there it is b'AA'" in other.err
