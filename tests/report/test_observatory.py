"""The observatory: what routers chose, counted; a file and a picture an evaluation; resumes."""

import json

import numpy as np
import pytest
import torch

import llm.report.observatory as observatory_module
from llm.data.batches import IGNORED, Batch
from llm.evaluate import Examination, examine
from llm.report.observatory import Observatory, expert_lines
from llm.tokenizer.bytes import Bytes
from llm.tracking.heatmap import draw_routing
from tests.toy_models import experts, randomised, reading, transformer

R, T, E, K, L = 7, 12, 4, 2, 3


@pytest.fixture(scope="module")
def exam():
    """Rows of different lengths, half of their targets of each of two skills."""
    rng = np.random.default_rng(0)
    ids_RT = rng.choice(np.frombuffer(b"the cat, 12 Dogs\n", np.uint8).astype(np.int64), (R, T + 1))
    targets_RT = ids_RT[:, 1:].copy()
    for row in range(R):
        targets_RT[row, 4 + row :] = IGNORED
    skills_RT = np.tile(np.arange(T) % 2, (R, 1)).astype(np.uint8) * 2
    nothing_RT = np.zeros((R, T), np.int64)
    batch = Batch(ids_RT[:, :-1], targets_RT, nothing_RT, nothing_RT)
    return Examination(batch, 100, np.zeros((R, T)), skills_RT, ["copy", "fact", "plan"])


@pytest.fixture
def model():
    return randomised(transformer(experts(E, K), n_layers=L, vocab_size=Bytes().vocab_size))


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """The files that would have been drawn."""
    drawn = []
    monkeypatch.setattr(observatory_module, "draw_routing", drawn.append)
    return drawn


def watch(folder, exam, step=0, said=None):
    return Observatory(folder, exam, Bytes(), step, (said if said is not None else []).append)


def chosen_by_hooks(model, exam):
    """Each layer's choices for the counted positions, one row of the examination at a time."""
    seen = [[] for _ in range(L)]
    hooks = [
        block.feed_forward.router.register_forward_hook(
            lambda module, given, routing, into=into: into.append(routing.experts_NK)
        )
        for block, into in zip(model.blocks, seen, strict=True)
    ]
    for row in torch.from_numpy(exam.rows.tokens_RT):
        model.eval()(row[None])
    for hook in hooks:
        hook.remove()
    counted = exam.rows.targets_RT != IGNORED
    return np.stack([torch.stack(into).numpy()[counted] for into in seen])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_counts_are_those_of_the_routers_on_counted_targets(tmp_path, model, exam, batch_size):
    observatory = watch(tmp_path, exam)
    examine(model, exam, reading(eval_rows=batch_size), watch=observatory.watch)
    metrics = observatory.report(200, "a run")
    choices_LMK = chosen_by_hooks(model, exam)
    for layer in range(L):
        counts = np.bincount(choices_LMK[layer].ravel(), minlength=E)
        assert metrics["moe/load"][layer] == pytest.approx(counts / counts.sum())
    with np.load(tmp_path / "routing" / "step-00000200.npz") as file:
        assert file["choices_LMK"].tolist() == choices_LMK.tolist()
        assert file["skill_names"].tolist() == ["copy", "plan"], "only those that occur"
        counted = exam.rows.targets_RT != IGNORED
        is_plan_M = exam.skills_RT[counted] == 2
        by_hand = np.bincount(choices_LMK[1][is_plan_M].ravel(), minlength=E)
        assert file["skill_LGE"][1, 1].tolist() == by_hand.tolist()
        assert set(file["token_names"]) >= {"part of a word", "punctuation", "white space"}
        # The class is that of the token that the expert reads, not of the one to come.
        spaces_M = exam.rows.tokens_RT[counted] == ord(" ")
        newlines_M = exam.rows.tokens_RT[counted] == ord("\n")
        place = file["token_names"].tolist().index("white space")
        assert file["token_LGE"][0, place].sum() == K * (spaces_M | newlines_M).sum()
    assert json.dumps(metrics)


def test_agreement_with_the_evaluation_before(tmp_path, model, exam):
    observatory = watch(tmp_path, exam)
    reports = []
    for step in (1, 2, 3):
        if step == 3:
            randomised(model, seed=5)
        examine(model, exam, reading(), watch=observatory.watch)
        reports.append(observatory.report(step, "a run"))
    assert "moe/val/agreement" not in reports[0]
    assert reports[1]["moe/val/agreement"] == 1.0
    assert 0 < reports[2]["moe/val/agreement"] < 1
    assert len(reports[2]["moe/layers/agreement"]) == L


def test_a_resumed_observatory_goes_on_alike(tmp_path, exam):
    """The evaluation before a resume is read back; later ones, which come again, are deleted."""
    models = [
        randomised(transformer(experts(E, K), vocab_size=Bytes().vocab_size), seed)
        for seed in (1, 2)
    ]
    folders = []
    for name, resumes in (("whole", False), ("resumed", True)):
        folder = tmp_path / name
        folder.mkdir()
        observatory = watch(folder, exam)
        for step, model in ((10, models[0]), (20, models[1]), (30, models[0])):
            if resumes and step == 30:
                observatory = watch(folder, exam, step=15)
                assert [f.name for f in folder.glob("routing/*")] == ["step-00000010.npz"]
                examine(models[1], exam, reading(), watch=observatory.watch)
                folders.append(observatory.report(20, "a run"))
                observatory = watch(folder, exam, step=25)
            examine(model, exam, reading(), watch=observatory.watch)
            folders.append(observatory.report(step, "a run"))
    (_, second, third), (_, lost, again, last) = folders[:3], folders[3:]
    assert lost == again == second and last == third


def test_the_number_of_metrics_depends_on_no_size(tmp_path, exam):
    names = []
    for n_experts, n_layers in ((2, 1), (16, 5)):
        model = transformer(experts(n_experts, 2), n_layers=n_layers, vocab_size=257)
        observatory = watch(None, exam)
        examine(model, exam, reading(), watch=observatory.watch)
        names.append(set(observatory.report(1, "a run")))
    assert names[0] == names[1]
    assert len(names[0]) < 40
    assert not list(tmp_path.iterdir()), "without a folder nothing is kept"


def test_dense_models_have_nothing_to_observe(tmp_path, exam, pictures):
    observatory = watch(tmp_path, exam)
    examine(transformer("dense", vocab_size=257), exam, reading(), watch=observatory.watch)
    assert observatory.report(1, "a run") == {}
    assert not list(tmp_path.iterdir()) and pictures == [] and expert_lines(tmp_path) == []


def test_layers_that_do_not_tell_their_choices_have_loads_all_the_same(tmp_path, model, exam):
    observatory = watch(tmp_path, exam)

    def hide(part, router):
        observatory.watch(part, {n: t for n, t in router.items() if n != "experts_NK"})

    examine(model, exam, reading(), watch=hide)
    metrics = observatory.report(1, "a run")
    assert np.array(metrics["moe/load"]).sum(1) == pytest.approx(np.ones(L), abs=1e-5)
    assert "moe/val/bits_token" not in metrics and len(expert_lines(tmp_path)) == 1 + L


def test_processes_that_share_an_examination(model, exam):
    """Each watches its own part; the sum over them is the whole."""
    alone = watch(None, exam)
    examine(model, exam, reading(eval_rows=2), watch=alone.watch)
    shares = [watch(None, exam) for _ in range(2)]
    turns = iter([0, 1, 0, 1])
    examine(
        model,
        exam,
        reading(eval_rows=2),
        watch=lambda part, router: shares[next(turns)].watch(part, router),
    )
    sent = []
    shares[1].report(1, "a run", lambda tensor: sent.append(tensor) or tensor)
    others = iter(sent)
    together = shares[0].report(1, "a run", lambda tensor: tensor + next(others))
    whole = alone.report(1, "a run")
    assert together.keys() == whole.keys()
    for name, value in whole.items():
        if name != "moe/picture":
            assert np.allclose(together[name], value, atol=1e-6), name


def test_a_disk_that_refuses_costs_the_file_and_no_more(tmp_path, model, exam, monkeypatch):
    said = []
    observatory = watch(tmp_path, exam, said=said)

    def refuse(*arguments, **rest):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", refuse)
    examine(model, exam, reading(), watch=observatory.watch)
    assert observatory.report(7, "a run")["moe/load"]
    assert len(said) == 1 and "step 7" in said[0] and "No space" in said[0]
    assert not list((tmp_path / "routing").iterdir())


def test_a_damaged_file_is_no_obstacle(tmp_path, model, exam):
    (tmp_path / "routing").mkdir()
    whole = tmp_path / "routing" / "step-00000001.npz"
    np.savez(whole, choices_LMK=np.zeros((L, 9, K), np.uint8))
    whole.write_bytes(whole.read_bytes()[:-30])
    assert expert_lines(tmp_path) == []
    observatory = watch(tmp_path, exam, step=1)
    examine(model, exam, reading(), watch=observatory.watch)
    assert "moe/val/agreement" not in observatory.report(2, "a run")


def test_the_card_has_a_line_a_layer_and_the_picture(tmp_path, model, exam, monkeypatch):
    monkeypatch.setattr(observatory_module, "draw_routing", draw_routing)
    observatory = watch(tmp_path, exam)
    for step in (1, 2):
        examine(model, exam, reading(), watch=observatory.watch)
        metrics = observatory.report(step, "a run")
    lines = expert_lines(tmp_path)
    assert len(lines) == 1 + L + 1
    assert all(max(map(len, lines[:-1])) <= 100 for line in lines)
    for layer, line in enumerate(lines[1:-1]):
        assert f"layer {layer}" in line and "100% as before" in line
        assert f"busiest {max(metrics['moe/load'][layer]) * E:.2f}×" in line
        assert "copy" in line or "plan" in line
    picture = tmp_path / metrics["moe/picture"]
    assert lines[-1].endswith(str(picture)) and picture.read_bytes().startswith(b"\x89PNG")
