"""What `import llm` gives: train, open, generate, judge."""

import subprocess
import sys

import pytest

import llm
from llm.config.errors import Refused
from tests.toy import TOY


@pytest.fixture
def fit(toy_text, monkeypatch):
    """`llm.fit` with the settings of a toy, its pictures left out."""
    monkeypatch.setattr("llm.report.observatory.draw_routing", lambda file: None)
    monkeypatch.setattr("llm.tracking.curve.draw_curve", lambda folder: None)
    return lambda *overrides: llm.fit([*TOY, *overrides])


def test_the_example_of_the_readme(fit, capsys):
    run = fit("train.budget=2steps")
    again = llm.load_run(run.folder.name[-4:])
    assert again.folder == run.folder
    text = run.generate("the cat", max_tokens=10, seed=1)
    assert isinstance(text, str) and text == again.generate("the cat", max_tokens=10, seed=1)
    assert len({run.generate("the cat", max_tokens=10, seed=seed) for seed in range(3)}) > 1
    greedy = {run.generate("the", max_tokens=8, temperature=0, seed=seed) for seed in range(3)}
    assert len(greedy) == 1
    assert 0 < run.loss("the cat sat") == again.loss("the cat sat") < 7
    assert run.tokenizer.encode("cat") == [99, 97, 116]
    with pytest.raises(Refused, match="the prompt has 17 tokens, more than the 16"):
        run.generate("x" * 17)


def test_fit_is_the_command(fit, llm_train):
    """The same run, whichever began it; what is finished answers."""
    command = llm_train("train.budget=3steps", "seed=5")
    run = fit("train.budget=3steps", "seed=5")
    assert run.folder.samefile(command.folder) and run.facts["state"] == "finished"
    assert run.step == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("moe=dens", "moe=dens"),
        ("train.batch_sise=3", "train.batch_sise"),
        ("model.n_heads=3", "model.n_heads"),
        ("moe=dense,topk", "moe=dense,topk"),
        ("--multirun", "--multirun: llm.fit takes settings alone, written key=value"),
    ],
)
def test_refusals_are_raised(fit, override, line):
    with pytest.raises(Refused) as refusal:
        fit(override)
    assert line in str(refusal.value)


def test_settings_are_a_list():
    with pytest.raises(Refused, match=r"llm.fit takes a list of settings: \['model=nano'\]"):
        llm.fit("model=nano")


def test_importing_it_costs_no_torch():
    code = "import sys, llm; print(llm.__version__, 'torch' in sys.modules, 'hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, *imported = done.stdout.split()
    assert version[0].isdigit() and imported == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = llm.fitt
