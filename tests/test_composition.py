"""Any option of any group with any option of any other: composed, validated and trained.

The options are found in conf/, so a new YAML file is a new case here. Rows are chosen so that each
pair of options of two groups occurs in one of them. The two largest groups would make half of the
rows; they meet in the model alone, where the fast tests take a step with each of their pairs.
"""

import os
import shutil
import signal
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.choices import Choices, conf_folder
from llm.data.feed import Feed
from llm.evaluate import acceptance
from llm.train import train
from tests.toy_models import tokens
from tests.typist import Typist

CHOICES = Choices()

#: Whatever the size of model, corpus or vocabulary is called, in an option that has such a key.
SMALL = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.n_kv_heads": "null",
    "model.d_ff": 32,
    "model.max_seq_len": 8,
    "data.path": "texts",
    "data.documents": 20,
    "data.val_documents": 4,
    "data.workers": 1,
    "data.symbols": 8,
    "data.successors": 2,
}
BRIEF = [
    "train.budget=2steps",
    "train.batch_size=2",
    "train.eval_every=2",
    "train.eval_tokens=64",
    "train.checkpoint_every=2",
    "train.sample_every=null",
]
#: Composed and built below, and not trained pairwise: devices that are not there, a library that
#: takes seconds to import (tests/tracking trains with it), corpora that need a network.
NOT_TRAINED = {
    "hardware": ["gpu", "mps"],
    "tracking": ["wandb"],
    "data": ["fineweb_edu", "hub", "openwebtext", "tinystories", "wikitext"],
    "experiments": CHOICES.groups["experiments"],  # which choose options of their own
}


#: Groups whose pairs the fast tests take a step with, without a command.
LARGEST = ("moe", "model/position")


def pairwise(groups: dict[str, list[str]], apart: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of one option a group that hold every pair of options of two groups, greedily few.

    `apart`: two groups whose pairs may be missing
    """

    def pairs(row: dict[str, str]) -> set:
        return {frozenset(pair) for pair in combinations(row.items(), 2)}

    missing = {
        frozenset([(a, x), (b, y)]): None
        for a, b in combinations(groups, 2)
        if {a, b} != {*apart}
        for x in groups[a]
        for y in groups[b]
    }
    rows = []
    while missing:
        row = dict(sorted(next(iter(missing))))
        for group, options in groups.items():
            if group not in row:
                counts = [len(pairs({**row, group: o}) & missing.keys()) for o in options]
                row[group] = options[counts.index(max(counts))]
        for pair in pairs(row):
            missing.pop(pair, None)
        rows.append({group: row[group] for group in groups})
    return rows


def trained_groups() -> dict[str, list[str]]:
    groups = {
        g: [o for o in distinct(g) if o not in NOT_TRAINED.get(g, [])] for g in CHOICES.groups
    }
    groups = {group: options for group, options in groups.items() if options}
    return {**groups, "debug": [*groups["debug"], "none"]}


def distinct(group: str) -> list[str]:
    """Options of a group, one of those that differ in what SMALL sets alone: of sizes, one.

    Which options of other groups they bring does not count: a row chooses in every group.
    """
    found: dict[str, str] = {}
    for option in CHOICES.options:
        if option.group == group:
            own = {k: v for k, v in option.node.items() if f"{option.place}.{k}" not in SMALL}
            found.setdefault(repr(sorted(own.items())), option.name)
    return list(found.values())


def small(row: dict[str, str]) -> list[str]:
    """The keys of SMALL that the options of this row have."""
    chosen = [option for option in CHOICES.options if row.get(option.group) == option.name]
    places = [(option.place, option) for option in chosen]
    # and those of the options that stand within one
    within = {place: (o.group, name) for o in chosen for place, name in o.inner.items()}
    known = {(option.group, option.name): option for option in CHOICES.options}
    places += [(place, known[name]) for place, name in within.items()]
    return [
        f"{place}.{key.removeprefix(option.place + '.')}={value}"
        for place, option in places
        for key, value in SMALL.items()
        if key in {f"{option.place}.{own}" for own in option.node}
    ]


def typed(row: dict[str, str]) -> list[str]:
    return [f"{g}={option}" for g, option in row.items() if (g, option) != ("debug", "none")]


def named(row: dict[str, str]) -> str:
    return " ".join(row.values())


@pytest.fixture(scope="session")
def shared_workplace(tmp_path_factory):
    """One folder for all rows, so that each corpus is prepared once with each tokenizer."""
    folder = tmp_path_factory.mktemp("composition")
    (folder / "texts").mkdir()
    (folder / "texts" / "text.txt").write_text(
        "the cat sat on the mat and saw a dog who ran to sea. " * 30
    )
    return folder


@pytest.fixture
def train_row(shared_workplace, monkeypatch, capsys):
    """Trains a row, with further overrides."""
    monkeypatch.chdir(shared_workplace)
    # Half of the time, and others' tests.
    monkeypatch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)
    monkeypatch.setattr("llm.report.observatory.draw_routing", lambda file: None)
    monkeypatch.setattr("llm.evaluate.acceptance", partial(acceptance, count=2))
    type_line = Typist(monkeypatch, capsys)

    def train_it(row, *more):
        # On every machine `auto` stands for bf16 in some rows and for fp32 in others.
        bf16 = row.get("hardware") == "auto"
        monkeypatch.setattr("llm.hardware.limits.has_bf16_products", lambda: bf16)
        return type_line(*typed(row), *small(row), *BRIEF, *more, task=train)

    return train_it


@pytest.mark.parametrize("row", pairwise(trained_groups(), apart=LARGEST), ids=named)
def test_every_pair_of_options_trains(train_row, row):
    ended = train_row(row)
    assert ended.code == 0, ended.err
    assert (ended.folder / "checkpoints" / "step-00000002").is_dir()
    assert "no effect" not in ended.err


@pytest.fixture(scope="module")
def nodes():
    """The config with each option of the two largest groups, in small."""
    sizes = [f"{key}={value}" for key, value in SMALL.items() if key.startswith("model.")]
    with initialize_config_dir(str(conf_folder().absolute()), version_base="1.3"):
        configs = {
            (group, option): compose("train", [f"{group}={option}", *sizes])
            for group in LARGEST
            for option in CHOICES.groups[group]
        }
    return {key: OmegaConf.to_container(config) for key, config in configs.items()}


@pytest.mark.parametrize("moe", CHOICES.groups["moe"])
def test_every_kind_of_experts_learns_with_every_position(nodes, moe):
    for position in CHOICES.groups["model/position"]:
        config = {**nodes["model/position", position], "moe": nodes["moe", moe]["moe"]}
        model = build_model(config, vocab_size=11)
        ids_BT = tokens(2, model.max_seq_len, vocab_size=11)
        output = model(ids_BT, ids_BT)
        (output.loss_sum + sum(output.aux.values())).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (position, name)


@pytest.mark.slow
@pytest.mark.parametrize("row", pairwise(trained_groups()), ids=named)
def test_every_pair_of_options_resumes_to_the_same_bytes(train_row, monkeypatch, row):
    check_halves(train_row, monkeypatch, row)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["compile=true", "recompute=true", "precision=bf16", "precision=fp16"]
)
def test_every_way_to_compute_resumes_to_the_same_bytes(train_row, monkeypatch, setting):
    row = {"moe": "noisy_topk", "optimizer": "muon"}
    check_halves(train_row, monkeypatch, row, f"hardware.{setting}", "model.dropout=0.1")


def check_halves(train_row, monkeypatch, row, *settings):
    """Four steps at once, and two and two; a checkpoint behind the third and the fourth."""
    lengths = ["train.budget=4steps", "train.checkpoint_every=3", *settings]
    at_once = train_row(row, *lengths)
    assert at_once.code == 0, at_once.err
    whole = kept(at_once.folder.rename(at_once.folder.with_name("at-once")))
    steps, take = [], Feed.take

    def taking(self, first, following):
        steps.append(first)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, first, following)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "take", taking)
        assert train_row(row, *lengths).code == 128 + signal.SIGTERM
    ended = train_row(row, *lengths)
    assert ended.code == 0 and "from step 2" in ended.err, ended.err
    assert ended.folder == at_once.folder
    halves = kept(ended.folder)
    assert whole.keys() == halves.keys() and len(whole) == 6
    assert [name for name in whole if whole[name] != halves[name]] == []
    for name in ("model", "optimizer"):
        early, late = (f"checkpoints/step-0000000{step}/{name}.safetensors" for step in (3, 4))
        assert whole[early] != whole[late]
    for folder in (at_once.folder.with_name("at-once"), ended.folder):
        shutil.rmtree(folder)


def kept(run: Path) -> dict[str, bytes]:
    """Metric log and tensors of a run."""
    files = [run / "metrics.jsonl", *run.glob("*/step-*/*.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "row", [{g: o} for g, options in NOT_TRAINED.items() for o in options], ids=named
)
def test_other_options_are_built_or_refused_in_a_sentence(workplace, monkeypatch, capsys, row):
    (workplace / "texts").mkdir()
    type_line = Typist(monkeypatch, capsys)
    ended = type_line(*typed(row), *small({"model": "tiny", **row}))
    if ended.code:
        assert ended.code == 2
        assert ended.err.startswith("llm.train: hardware: no ")
        assert "hardware=cpu" in ended.err


def test_the_rows_hold_every_pair():
    groups = {"a": list("123"), "b": list("45"), "c": list("678"), "d": list("90")}
    rows = pairwise(groups)
    assert all(set(row) == set(groups) for row in rows)
    for a, b in combinations(groups, 2):
        held = {(row[a], row[b]) for row in rows}
        assert held == {(x, y) for x in groups[a] for y in groups[b]}
    assert len(rows) <= 12
