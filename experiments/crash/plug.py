"""Pulling the plug: commands in processes that are killed at random moments, and what they leave.

Processes are forked from this one, so that what was imported here need not be again: a start takes
a second instead of four. A kill in the middle of an import has nothing to destroy.
"""

import math
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llm.config.entry import Job, main


class Command:
    """`python -m NAME`: what it does is `task`, what it says goes to the file `log`."""

    def __init__(self, name: str, task: Callable[[Job], Any], log: Path):
        self.name, self.task, self.log = name, task, log

    def start(self, overrides: list[str]) -> BaseProcess:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._do, args=(overrides,), daemon=True)
        process.start()
        return process

    def finish(self, process: BaseProcess) -> None:
        """Wait for its end, which has to be a good one."""
        process.join()
        if process.exitcode:
            told = self.log.read_text()[-3000:]
            raise SystemExit(f"{told}\n{self.name} ended with {process.exitcode}")

    def _do(self, overrides: list[str]) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(log, standard)
        sys.argv = [self.name, *overrides]
        main(self.name, self.task)


def pull(
    process: BaseProcess,
    dice: random.Random,
    start: float,
    at_work: Callable[[], bool],
    spread: float,
) -> bool:
    """Kill the process with SIGKILL at a random moment; False where it ended before that.

    One time in five that is in its first `start` seconds, otherwise up to `spread` seconds after
    `at_work()`, which is asked again and again, becomes true.
    """
    if dice.random() < 0.2:
        time.sleep(dice.uniform(0, start))
    else:
        while process.is_alive() and not at_work():
            time.sleep(0.002)
        time.sleep(dice.uniform(0, spread))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def rising(measure: Callable[[], float], least: float = 0.0) -> Callable[[], bool]:
    """Whether `measure()` has risen between two calls of this, and is `least` or more."""
    before, risen = math.inf, False

    def look() -> bool:
        nonlocal before, risen
        now = measure()
        before, risen = now, risen or now > before
        return risen and now >= least

    return look


def contents(root: Path, *patterns: str) -> dict[str, bytes]:
    """Name and bytes of every file in `root` that one of the patterns fits."""
    files = {file for pattern in patterns for file in root.glob(pattern) if file.is_file()}
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(files)}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files that are not the same bytes in both."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
