"""What answers without torch: --help, --version, --cfg, shell completion."""

import shutil
import subprocess
import sys

import pytest

from llm.config.choices import Choices
from tests.typist import Typist, own_option

#: Runs the command line and says on standard error what heavy modules it imported.
PROBE = """
import runpy, sys
sys.argv = ["llm.train", *sys.argv[1:]]
try:
    runpy.run_module("llm.train", run_name="__main__")
finally:
    heavy = [m for m in ("torch", "datasets", "wandb", "transformers") if m in sys.modules]
    print("heavy:", heavy, file=sys.stderr)
"""


@pytest.fixture
def type_line(workplace, monkeypatch, capsys):
    return Typist(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--help"], "model/position"),
        (["--cfg", "job", "--resolve", "model=small", "moe=dense", "moe.n_experts=8"], "512"),
        (["--shell-completion", "query=bash"], "model=tiny"),
    ],
    ids=["help", "cfg", "completion"],
)
def test_answers_without_torch(workplace, monkeypatch, arguments, told):
    monkeypatch.setenv("COMP_LINE", "llm-train model=")
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert told in ended.stdout
    assert ended.stderr.strip() == "heavy: []"
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_option_with_what_it_is(type_line, flag):
    ended = type_line(flag)
    assert ended.code == 0
    lines = [line.split(maxsplit=1) for line in ended.out.splitlines() if line.startswith(" ")]
    described = {line[0].lstrip("*"): line[1] for line in lines if len(line) == 2}
    for names in Choices().groups.values():
        for name in names:
            assert len(described[name]) > 10, name
    for name in Choices().defaults().values():
        assert name == "None" or f" *{name} " in ended.out
    assert "  budget: " in ended.out


def test_a_package_that_is_not_there_is_2(type_line):
    assert type_line("--cfg", "job", "--package", "nope").code == 2


def test_help_lists_options_of_the_users_own(type_line, workplace):
    own_option(workplace / "mine", "moe", "mine", "# My router.\ndefaults: [switch]\n")
    assert "My router" in type_line("--help", "--config-dir", "mine").out


@pytest.mark.parametrize("flag", ["--version", "--hydra-help"])
def test_other_flags_of_hydra_answer(type_line, flag):
    ended = type_line(flag)
    assert ended.code == 0
    assert ended.out
    assert ended.err == ""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_the_command_as_it_is_typed(workplace, monkeypatch):
    script = f"""
    eval "$({sys.executable} -m llm.train -sc install=bash)"
    COMP_LINE="{sys.executable} -m llm.train moe=" COMP_CWORD=3
    COMP_WORDS=({sys.executable} -m llm.train moe=)
    _llm_complete
    echo "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout.split() == [f"moe={name}" for name in Choices().groups["moe"]]


@pytest.mark.parametrize("typed", ["--shell-completion", "--shell-completion query=bash"])
def test_completion_misused_is_refused(type_line, monkeypatch, typed):
    monkeypatch.delenv("COMP_LINE", raising=False)
    type_line.refused(*typed.split())
