"""What the tests of the config type at the command line, and what comes of it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.config.choices import conf_folder
from llm.config.entry import Job, main
from llm.training.prepare import prepare_run
from tests.toy import Ended


class _Accepted(Exception):
    """Nothing was refused: data would be prepared now."""


class Typist:
    """Types `python -m llm.train …` in this process, up to where data would be prepared.

    `jobs` are those that were accepted, the newest last.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.jobs: list[Job] = []

    def __call__(self, *arguments: str, task: Callable[[Job], None] | None = None) -> Ended:
        self.capsys.readouterr()
        if "-m" in arguments and not any("hydra/launcher" in a for a in arguments):
            arguments = (*arguments, "hydra/launcher=basic")  # jobs in this process
        self.monkeypatch.setattr("sys.argv", ["llm.train", *arguments])
        with pytest.raises(SystemExit) as end:
            main("llm.train", task or self.check)
        return Ended(end.value.code, *self.capsys.readouterr())

    def check(self, job: Job) -> None:
        def stop(*arguments: Any) -> None:
            raise _Accepted

        with self.monkeypatch.context() as patch:
            patch.setattr("llm.data.prepare.prepare", stop)
            with pytest.raises(_Accepted):
                prepare_run(job)
        self.jobs.append(job)

    def accepted(self, *arguments: str) -> Job:
        ended = self(*arguments)
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
        return self.jobs[-1]

    def refused(self, *arguments: str) -> str:
        """The one line on standard error."""
        before = len(self.jobs)
        ended = self(*arguments)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert len(ended.err.strip().splitlines()) == 1, ended.err
        assert ended.err.startswith("llm.train: ")
        assert "Traceback" not in ended.err
        assert len(self.jobs) == before
        assert not Path("outputs").exists()
        return ended.err.strip().removeprefix("llm.train: ")


def own_option(folder: Path, group: str, name: str, text: str) -> Path:
    """A YAML file of the user's own in `folder`; returns the folder, for --config-dir."""
    file = folder / group / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


def edited_conf(folder: Path, file: str, before: str, after: str) -> Path:
    """A copy of conf/ with one edit, for --config-path."""
    shutil.copytree(conf_folder(), folder)
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1))
    return folder


def forget_modules(package: str) -> None:
    """So that another test can import another package of this name."""
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        del sys.modules[name]
