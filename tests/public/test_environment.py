"""Outside the project's environment a command says how to get into it."""

import subprocess
import sys
from pathlib import Path

import pytest

from llm.config import environment
from llm.config.command import exit_code

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["train", "runs", "sizes"])
def test_a_bare_python_gets_one_line(command):
    bare = [sys.executable, "-S", "-m", f"llm.{command}"]  # -S: without any installed package
    ended = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"llm.{command}: ")
    assert "hydra" in line
    assert "`source .venv/bin/activate`" in line or "`make env`" in line


def test_the_remedy_fits_what_is_there(tmp_path, monkeypatch):
    def told() -> str:
        return environment.lacks("zzz")

    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    monkeypatch.setattr(environment, "_VENV", tmp_path / ".venv")
    monkeypatch.chdir(tmp_path)
    assert told().endswith("lacks zzz; install it with pip")
    (tmp_path / "Makefile").touch()
    assert "run `make env`, then `source .venv/bin/activate`" in told()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    assert "not active; run `source .venv/bin/activate`" in told()
    monkeypatch.chdir(tmp_path / ".venv")
    assert "`source bin/activate`" in told()
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    assert "`make -C .. -B env`" in told()


def test_one_missing_package_is_named(capsys):
    def call():
        import no_such_package.within  # noqa: F401

    assert exit_code("llm.train", call) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"llm.train: {sys.executable} lacks no_such_package")


def test_a_missing_module_of_ours_is_a_bug(capsys):
    def call():
        import llm.no_such_room  # noqa: F401

    assert exit_code("llm.train", call) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_command_is_printed_as_it_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "my env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment.invocation("llm.chat") == "'my env/bin/python' -m llm.chat"
    monkeypatch.setenv("PATH", str(python.parent))
    assert environment.invocation("llm.chat") == "python -m llm.chat"
    assert environment.invocation("llm.runs", "sync", outputs=tmp_path / "outputs").endswith(
        " sync"
    )
    told = environment.invocation("llm.runs", "sync", outputs=Path("a b"))
    assert told == "python -m llm.runs sync '--outputs=a b'"
