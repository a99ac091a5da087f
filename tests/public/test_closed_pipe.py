"""`| head` ends a command quietly."""

import subprocess
import sys

import pytest

from llm.config.command import exit_code
from llm.config.outcome import as_problem

MUCH = "print('x' * 100_000)"


@pytest.mark.parametrize("closed", ["stdout", "both"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (MUCH, 0),  # noticed while it prints
        ("print('x')", 0),  # noticed at the end, where the buffer is emptied
        ("print('x'); raise SystemExit(0)", 0),  # --help
        ("raise Refused('no')", 2),
    ],
)
def test_a_reader_that_leaves_is_no_error(body, code, closed):
    source = f"""
import sys
from llm.config.command import exit_code
from llm.config.errors import Refused
def call():
  {body}
sys.stdin.read()
sys.exit(exit_code("llm.runs", call))
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if closed == "both":
        pipes["stderr"] = subprocess.STDOUT
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, **pipes
    ) as command:
        command.stdout.close()
        command.stdin.close()
        said = command.stderr.read().decode() if command.stderr else ""
    assert command.returncode == code
    assert said == ("llm.runs: no\n" if code and closed == "stdout" else "")


def test_a_job_does_not_make_another_error_of_it():
    left = BrokenPipeError(32, "Broken pipe")
    assert as_problem(left, {}) is left


def test_another_pipe_that_breaks_is_one(capfd):
    def call():
        raise as_problem(BrokenPipeError(32, "Broken pipe"), {})

    assert exit_code("llm.train", call) == 1
    assert capfd.readouterr().err == "llm.train: [Errno 32] Broken pipe\n"
