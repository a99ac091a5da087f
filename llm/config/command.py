"""How a command ends: whatever it raises becomes one line on standard error and an exit code."""

import os
import select
import sys
import time
import traceback
from collections.abc import Callable

from llm.config.environment import lacks
from llm.config.errors import Failed, Interrupted, PeerFailed, Refused
from llm.config.terminal import shown


def exit_code(command: str, call: Callable[[], int | None]) -> int:
    """Run `call` and return the exit code: its own or 0, or that of what it raised.

    Args:
        command: the command's name, for messages ("llm.train")
    """
    code = 0
    try:
        try:
            code = call() or 0
        except BaseException as problem:
            if isinstance(problem, BrokenPipeError) and _reader_is_gone():
                raise
            code, line = _ending(problem)
            _tell(command, problem, line, code)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
    return code


def _ending(problem: BaseException) -> tuple[int, str | None]:
    """The exit code, and the line to be said; None calls for the traceback of a bug."""
    match problem:
        case Refused():
            if os.environ.get("LOCAL_RANK", "0") != "0" and not problem.own:
                # Each process of the job reads the same config: one says what is wrong with it, and
                # torchrun, which ends all as soon as one has ended, lets it finish its line.
                time.sleep(5)
                return 2, ""
            return 2, str(problem)
        case Interrupted() | PeerFailed():  # which has been said
            return problem.exit_code, ""
        case KeyboardInterrupt():
            return 130, "interrupted"
        case Failed() | BrokenPipeError():
            return 1, str(problem)
        case SystemExit():
            known = problem.code is None or isinstance(problem.code, int)
            return int(problem.code or 0) if known else 1, ""
        case ModuleNotFoundError(name=str(name)) if name.split(".")[0] != "llm":
            return 2, lacks(name)
    return 1, None


def _tell(command: str, problem: BaseException, line: str | None, code: int) -> None:
    if line is None or (line and code != 130 and os.environ.get("HYDRA_FULL_ERROR") == "1"):
        traceback.print_exception(problem)
    if not line:
        return
    terminal = sys.stderr.isatty()
    line = shown(" ".join(line.split("\n")), sys.stderr)  # typed text may hold line ends
    begin = "\n" if code == 130 and terminal else ""  # behind ^C
    print(f"{begin}\033[31m{command}:\033[0m" if terminal else f"{command}:", line, file=sys.stderr)


def _reader_is_gone() -> bool:
    """Whether it is our own output that nobody reads any more, and not another pipe."""
    pipes = select.poll()
    for stream in (1, 2):
        pipes.register(stream, 0)  # errors are reported all the same
    return bool(pipes.poll(0))
