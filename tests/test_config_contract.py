"""The config contract: nothing is silently accepted, and nothing valid is refused.

What is refused is refused before any work, in one line that names the key as typed and the nearest
valid one. Sixty lines that people mistype, thirty that they may type.
"""

import shlex
import subprocess
import sys

import pytest

from tests.typist import Typist, edited_conf, own_option

#: Whatever the defaults are.
BASE = """model=tiny model/position=learned model/style=gpt2 moe=switch data=pydoc tokenizer=bytes
    optimizer=adamw optimizer/schedule=cosine optimizer.lr=1e-3 train.batch_size=16
    train.eval_every=100 train.checkpoint_every=100""".split()
ROUTER = "_target_: llm.moe.router.TopKRouter\n  renormalize: false\n  init_scale: 0.1\n"


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    return Typist(monkeypatch, capsys)


#: What is typed, and what the one line must hold: the key as typed, and the remedy.
OVERRIDES = [
    # misspelt keys
    ("model.n_layrs=3", "model.n_layrs=3", "did you mean model.n_layers?"),
    ("+model.n_layrs=3", "+model.n_layrs=3", "did you mean model.n_layers?"),
    ("++model.n_layrs=3", "++model.n_layrs=3", "did you mean model.n_layers?"),
    ("train.bugdet=3steps", "train.bugdet=3steps", "did you mean train.budget?"),
    ("trian.budget=3steps", "trian.budget=3steps", "did you mean train.budget?"),
    ("sed=3", "sed=3", "did you mean seed?"),
    ("model.position.bse=3", "model.position.bse=3", "did you mean model.position.base?"),
    ("moe.router.jiter=0.1", "moe.router.jiter=0.1", "did you mean moe.router.jitter?"),
    ("optimizer.schedule.finl=0", "optimizer.schedule.finl=0", "optimizer.schedule.final?"),
    ("run.exsting=restart", "run.exsting=restart", "did you mean run.existing?"),
    ("+foo={}", "foo", "no such key"),
    ("+train._target_=llm.config.root.RunSettings", "train._target_", "no such key"),
    ("moe=dense moe.n_exprts=4", "moe.n_exprts=4", "did you mean moe.n_experts?"),
    # keys in the wrong section, or by another trainer's name
    ("model.lr=0.1", "model.lr=0.1", "did you mean optimizer.lr?"),
    ("lr=0.1", "lr=0.1", "did you mean optimizer.lr?"),
    ("learning_rate=0.1", "learning_rate=0.1", "did you mean optimizer.lr?"),
    ("model.n_embd=64", "model.n_embd=64", "did you mean model.d_model?"),
    ("block_size=64", "block_size=64", "did you mean model.max_seq_len?"),
    ("train.max_iters=64", "train.max_iters=64", "did you mean train.budget?"),
    ("train.warmup_iters=64", "train.warmup_iters=64", "did you mean optimizer.warmup?"),
    # groups and options
    ("modle=small", "modle=small", "did you mean model?"),
    ("model=smal", "model=smal", "did you mean model=small?"),
    ("moe=swtich", "moe=swtich", "did you mean moe=switch?"),
    ("model/positon=rope", "model/positon=rope", "did you mean model/position?"),
    ("model/n_layers=2", "model/n_layers=2", "did you mean model.n_layers?"),
    ("model.position=rope", "model.position=rope", "write model/position=rope"),
    ("model.positio=rope", "model.positio=rope", "did you mean model.position?"),
    ("debug=overfitt", "debug=overfitt", "did you mean debug=overfit?"),
    ("model=null", "model=null", "there are base, gpt2, large"),
    ("debug=null", "debug=null", "leave it out"),
    ("~model", "~model", "model=base|gpt2|large"),
    ("~optimizer.betas", "~optimizer.betas", "optimizer.betas=VALUE"),
    ("~optimizer.lr_factors.haed", "~optimizer.lr_factors.haed", "nothing to leave out"),
    ("--cfg job ~optimizer.beta", "~optimizer.beta", "did you mean optimizer.betas?"),
    ("model@moe=tiny", "model@moe=tiny", "write model=OPTION"),
    ("hydra/launcher=basci", "hydra/launcher=basci", "did you mean"),
    ("hydra/launchr=basic", "hydra/launchr=basic", "did you mean hydra/launcher?"),
    ("hydra.swep.dir=x", "hydra.swep.dir", "no such key"),
    # types
    ("optimizer.lr=abc", "optimizer.lr=abc", "is not a number"),
    ("model.n_layers=2.5", "model.n_layers=2.5", "is not a whole number"),
    ("model.n_layers=true", "model.n_layers=true", "is not a whole number"),
    ("model.n_layers=null", "model.n_layers=null", "is not a whole number, at least 1: null"),
    ("model.bias=1", "model.bias=1", "is not true or false"),
    ("model.norm=3", "model.norm=3", "one of layernorm, rmsnorm"),
    ("model.norm=rmsnrom", "model.norm=rmsnrom", "one of layernorm, rmsnorm"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9", "write [a,b]"),
    ("moe.router=null", "moe.router=null", "is not a config node"),
    ("train=5", "train=5", "is not a config node"),
    ("moe=dense moe.n_experts=banana", "moe.n_experts=banana", "is not a whole number"),
    ("tracking=none tracking.mode=onlin", "tracking.mode=onlin", "one of offline, online"),
    # ranges
    ("optimizer.lr=nan", "optimizer.lr=nan", "is not a number, more than 0"),
    ("optimizer.lr=inf", "optimizer.lr=inf", "is not a number, more than 0"),
    ("optimizer.lr=-0.1", "optimizer.lr=-0.1", "must be more than 0"),
    ("model.n_layers=0", "model.n_layers=0", "must be at least 1"),
    ("model.d_ff=1e30", "model.d_ff=1e30", "is not a whole number"),
    ("model.dropout=1.5", "model.dropout=1.5", "must be at least 0 and less than 1"),
    ("seed=-1", "seed=-1", "must be at least 0"),
    ("seed=99999999999999999999", "seed=99999999999999999999", "at most"),
    ("train.eval_tokens=0", "train.eval_tokens=0", "must be at least 1"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9,1.0]", "less than 1"),
    # contradictions
    ("model.n_heads=7", "model.n_heads=7", "does not divide d_model=192"),
    ("moe.top_k=8", "moe.top_k=8", "more than n_experts=4"),
    ("moe=topk moe.top_k=1", "moe.router.renormalize", "never learn"),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]", "two numbers"),
    ("model.vocab_size=3", "model.vocab_size=3", "cannot be set"),
    ("data=custom", "data.path", "data.path=FILE_OR_FOLDER"),
    ("data=custom data.path=nowhere.txt", "data.path=nowhere.txt", "there is no nowhere.txt"),
    ("train.budget=20Mtk", "train.budget=20Mtk", "20Mtok"),
    ("train.budget=200", "train.budget=200", "2000steps"),
    ("train.budget=0steps", "train.budget=0steps", "more than nothing"),
    # whose code runs
    ("moe.router._target_=os.system", "moe.router._target_=os.system", "'plugins=[os]'"),
    ("tokenizer._target_=llm.data.pydoc.Pydoc", "tokenizer._target_=", "no part of llm.tokenizer"),
    ("+foo._target_=os.system", "foo._target_=os.system", "no such key"),
    ("data._target_=llm.data.custom.Path", "data._target_=", "is no class of llm"),
    ("data._target_=llm.data.pydoc.Pydco", "data._target_=", "there is no llm.data.pydoc.Pydco"),
    # how it is written
    ("seed=1,2", "seed=1,2", "add -m"),
    ("optimizer.betas=0.9,0.95", "optimizer.betas=0.9,0.95", "optimizer.betas=[0.9,0.95]"),
    ("model=[a", "model=[a", "is no key=value"),
    ("model tiny", "model", "did you mean model=VALUE?"),
    ("=3", "=3", "is no key=value"),
    ("outputs=", "outputs=", "is not a text"),
    ("+hydra.rnu=1", "hydra.rnu", "did you mean hydra.run?"),
    ("outputs='a", "outputs='a", "quote special characters"),
    ("optimizer.lr=${optimizer.eps_}", "optimizer.lr", "did you mean optimizer.eps?"),
    ("outputs=${train", "outputs", "is no key=value"),
    # flags
    ("--lr 3e-4", "--lr", "did you mean optimizer.lr=VALUE?"),
    ("--n-layers=3", "--n-layers", "did you mean model.n_layers=VALUE?"),
    ("--model tiny", "--model", "did you mean model=VALUE?"),
    ("--cfg foo", "--cfg", "job"),
    ("--resolve", "--resolve", "--cfg job"),
    ("--cfg job --multirun", "--multirun and --cfg", "exclude"),
    ("--cfg job model.n_layrs=3", "model.n_layrs=3", "did you mean model.n_layers?"),
    ("--config-name trian", "trian", "did you mean train?"),
    ("--config-dir nowhere", "nowhere", "is no folder"),
    ("--experimental-rerun config.pickle", "--experimental-rerun", "continued"),
    ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN", "add -m"),
]


@pytest.mark.parametrize(("typed", "named", "remedy"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_a_mistake_on_the_command_line_is_refused(type_line, typed, named, remedy):
    line = type_line.refused(*BASE, *typed.split())
    assert named in line
    assert remedy in line


#: A file of the user's own that `--config-dir` adds, and what the one line must hold.
FILES = [
    ("model", "defaults: [tiny]\nn_layrs: 3\n", "model.n_layrs", "did you mean model.n_layers?"),
    ("model", "defaults: [tiny]\nn_layers: three\n", "model.n_layers", "is not a whole number"),
    ("model", "defaults: [tiny]\nposition: {bse: 1}\n", "model.position.bse", "position.base?"),
    ("moe", f"router:\n  {ROUTER}  jiter: 0.1\n", "moe", "names no _target_"),
    (
        "moe",
        f"defaults: [switch]\nrouter:\n  {ROUTER}  jiter: 0.1\n",
        "moe.router.jiter",
        "did you mean moe.router.jitter?",
    ),
    ("debug", "# @package _global_\ntrain: {bugdet: 3steps}\n", "train.bugdet", "train.budget?"),
    ("debug", "# @package _global_\nplugins: [os]\n", "plugins", "only the command line"),
    ("data", "_target_: os.path.Path\n", "data._target_", "'plugins=[os]'"),
    ("data", "path: text.txt\n", "data", "names no _target_"),
    ("model", "defaults: [tinny]\n", "model=tinny", "did you mean tiny?"),
    ("model", "defaults: [{position: ropee}]\n", "model/position=ropee", "did you mean rope?"),
    ("model", "n_layers: [1,\nd_ff: 2\n", "mine.yaml, line", "is no YAML"),
    ("model", "n_layers: 1\nn_layers: 2\n", "mine.yaml, line 2", "duplicate key"),
    ("model", "n_layers:\n\t- 1\n", "mine.yaml, line 2", "is no YAML"),
    ("model", "- 1\n- 2\n", "mine.yaml", "holds no mapping"),
    ("model", "", "model", "names no _target_"),
    ("model", "defaults: [tiny]\nd_model: ${d_modle}\n", "model.d_model", "not found"),
]


@pytest.mark.parametrize(("group", "text", "named", "remedy"), FILES)
def test_a_mistake_in_a_file_is_refused(type_line, workplace, group, text, named, remedy):
    own_option(workplace / "mine", group, "mine", text)
    line = type_line.refused("--config-dir", "mine", f"{group}=mine")
    assert named in line
    assert remedy in line


@pytest.mark.parametrize(
    ("file", "before", "after", "named", "remedy"),
    [
        ("model/tiny.yaml", "n_layers", "n_layrs", "model.n_layrs", "model.n_layers?"),
        ("train.yaml", "budget:", "bugdet:", "train.bugdet", "train.budget?"),
        ("train.yaml", "seed: 0", "seed: 0\nsede: 1", "sede", "did you mean seed?"),
        ("train.yaml", "- model: ", "- model: tinny # ", "model=tinny", "did you mean tiny?"),
        ("train.yaml", "seed: 0", "seed: [0", "train.yaml, line", "is no YAML"),
        ("train.yaml", "plugins: []", "plugins: [os]", "plugins", "only the command line"),
    ],
)
def test_a_mistake_in_a_copied_conf_is_refused(
    type_line, workplace, file, before, after, named, remedy
):
    edited_conf(workplace / "conf", file, before, after)
    line = type_line.refused(
        "--config-path", "conf", "moe=switch", *(["model=tiny"] if "model" in file else [])
    )
    assert named in line
    assert remedy in line


def test_a_file_that_hides_behind_ours_is_refused(type_line, workplace):
    own_option(workplace / "mine", "model", "tiny", "n_layers: 3\n")
    line = type_line.refused("--config-dir", "mine")
    assert "is model=tiny already; give yours another name" in line


@pytest.fixture(scope="module")
def identities():
    """The identity of each list of spellings that a test has met."""
    return {}


#: Valid lines. Those of one list are one experiment in other words.
SPELLINGS = [
    [
        "",
        "model=tiny moe=switch",
        "+model=tiny",
        "++seed=0",
        "seed=0.0",
        "optimizer.lr=1e-3",
        "optimizer.lr=0.001",
        "optimizer.lr=.001",
        "model.n_layers=4.0",
        "'model.norm=\"layernorm\"'",
        "model/position=learned model/style=gpt2",
        "optimizer.betas=[0.9,0.950]",
        "train={batch_size:16}",
        "moe.router={jitter:0.01}",
        "model.position.base=5",
        "optimizer.schedule.decay=0.5",
        "hydra.run.dir=.",
        "tracking=none",
        "outputs=elsewhere train.checkpoint_every=7 hardware.threads=2 run.existing=restart",
        "'train.eval_every=${train.checkpoint_every}'",
    ],
    [
        "moe=dense",
        "moe=dense moe.n_experts=8",
        "moe.n_experts=8 moe=dense moe.router.jitter=0.5",
    ],
    [
        "+debug=overfit",
        "debug=overfit",
        "train.overfit=true train.budget=200steps",
    ],
    ["++train.budget=2steps", "train.budget=2steps", "'train.budget=\"2steps\"'"],
    ["tokenizer=words data=custom data.path=1 data.text_column=0"],
    ["train.clip_norm=null", "train.clip_norm=Null"],
    [
        "model/position=rope model.position.base=10000",
        "model.position.base=1e4 model/position=rope",
    ],
    ["model.n_layers=2 seed=1", "seed=1 model.n_layers=2"],
    ["moe=topk moe.top_k=1 moe.router.renormalize=false"],
]


VALID = [line for lines in SPELLINGS for line in lines]


@pytest.mark.parametrize("typed", VALID)
def test_a_valid_line_is_accepted(type_line, workplace, identities, typed):
    (workplace / "1").mkdir()  # a folder of text, for data.path=1
    job = type_line.accepted(*BASE, *shlex.split(typed))
    number = next(i for i, lines in enumerate(SPELLINGS) if typed in lines)
    assert identities.setdefault(number, job.validated.identity) == job.validated.identity
    others = [other for i, other in identities.items() if i != number]
    assert job.validated.identity not in others


def test_an_edited_default_is_another_identity(type_line, workplace):
    ours = type_line.accepted(*BASE)
    edited_conf(workplace / "conf", "model/_shared.yaml", "dropout: 0.0", "dropout: 0.1")
    edited = type_line.accepted("--config-path", "conf", *BASE)
    assert edited.validated.identity != ours.validated.identity


def test_a_key_without_effect_says_so_once(type_line):
    job = type_line.accepted(*BASE, "moe=dense", "moe.n_experts=8", "optimizer.schedule.decay=0.5")
    assert job.validated.notes == [
        "moe.n_experts=8 has no effect with moe=dense",
        "optimizer.schedule.decay=0.5 has no effect with optimizer/schedule=cosine",
    ]
    assert "n_experts" not in job.config["moe"]


def test_flags_may_stand_between_overrides(type_line):
    ended = type_line("model=mini", "--cfg", "job", "seed=5", "--package", "model")
    assert ended.code == 0
    assert "d_model: 256" in ended.out


def test_a_mapping_without_keys_of_its_own_takes_any(type_line):
    line = ["optimizer.lr_factors.head=2", "+optimizer.lr_factors={gain: 3}"]
    ended = type_line("--cfg", "job", *line, "~optimizer.lr_factors.head")
    assert ended.code == 0, ended.err
    assert "  lr_factors:\n    gain: 3\n" in ended.out


def test_each_line_of_config_says_its_value_resolved(type_line):
    ended = type_line("--cfg", "job", "--resolve", "moe=dense", "moe.n_experts=8")
    assert ended.code == 0, ended.err
    assert "llm.layers.feed_forward.FeedForward" in ended.out


REAL = [
    (["train.budget=20Mtk"], 2, "write 20Mtok"),
    (["--cfg", "job", "model.n_layrs=3"], 2, "did you mean model.n_layers?"),
]


@pytest.mark.parametrize(("typed", "code", "told"), REAL)
def test_a_real_process_refuses_in_one_line(workplace, typed, code, told):
    ended = subprocess.run(
        [sys.executable, "-m", "llm.train", *typed],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == code
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert told in ended.stderr
    assert list(workplace.iterdir()) == []


def test_a_model_brings_its_experts_unless_told_otherwise(type_line):
    """`model=mixtral` is enough; what somebody chooses for `moe` wins, in any order."""
    brought = type_line.accepted("model=mixtral")
    assert brought.chosen["moe"] == "mixtral" and brought.config["moe"]["n_experts"] == 8
    for line in (["model=mixtral", "moe=dense"], ["moe=dense", "model=mixtral"]):
        told = type_line.accepted(*line)
        assert told.chosen["moe"] == "dense" and "n_experts" not in told.config["moe"]
    changed = type_line.accepted("model=olmoe", "moe.n_experts=32")
    assert changed.config["moe"]["n_experts"] == 32 and changed.config["moe"]["granularity"] == 8
    type_line("-m", "model=nano,mixtral,llama")
    assert [job.chosen["moe"] for job in type_line.jobs[-3:]] == ["topk", "mixtral", "dense"]


def test_what_files_share_is_refused_in_its_own_file(type_line, workplace):
    edited_conf(workplace / "conf", "model/_shared.yaml", "dropout: 0.0", "dropout: 1.5")
    line = type_line.refused("--config-path", "conf", "model=tiny")
    assert "model/_shared.yaml: model.dropout: is 1.5" in line
