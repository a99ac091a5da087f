"""Several processes of one job, as torchrun starts them, without what starting costs.

They are forked from the test's process, which has imported torch already.
"""

import faulthandler
import io
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tests.toy import TOY, Ended

#: Seconds after which whoever has not answered says where it stands and ends.
PATIENCE = 200


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def in_processes(size: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(rank)` of each of `size` processes; an exception is answered as itself."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    results = [context.Pipe(duplex=False) for _ in range(size)]

    def run(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        faulthandler.dump_traceback_later(PATIENCE, exit=True, file=2)
        try:
            answer = work(rank)
        except BaseException as problem:
            answer = problem
        results[rank][1].send(answer)
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    answers = [_answer(receiver, p) for (receiver, _), p in zip(results, processes, strict=True)]
    for process in processes:
        process.kill()
        process.join()
    return answers


def _answer(receiver: Connection, process: BaseProcess) -> Any:
    """What a process has sent; a ChildProcessError as soon as it has ended without a word."""
    wait([receiver, process.sentinel])
    if receiver.poll():
        return receiver.recv()
    process.join()
    return ChildProcessError(f"ended with {process.exitcode} and no answer")


def train_in_a_fork(
    *overrides: str, before: Callable[[], None] = lambda: None, err: str = os.devnull
) -> BaseProcess:
    """`python -m llm.train` on a toy, for tests that kill it or send it signals.

    `before` is called in the process at its start; `err` is the file of its standard error.
    """

    def run() -> None:
        from llm.config.entry import main
        from llm.train import train

        faulthandler.dump_traceback_later(PATIENCE, exit=True, file=2)
        before()
        sys.argv = ["llm.train", *TOY, *overrides]
        with open(err, "w") as file, redirect_stderr(file):
            main("llm.train", train)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def train_in_processes(
    size: int, *jobs: list[str], before: Callable[[int], None] = lambda rank: None
) -> list[list[Ended]]:
    """`llm.train` with each list of overrides in turn, in the same processes: by job, by rank.

    `before` is called in each process at its start, with its rank.
    """

    def work(rank: int) -> list[Ended]:
        from llm.config.entry import main
        from llm.train import train

        before(rank)
        ends = []
        for overrides in jobs:
            sys.argv = ["llm.train", "hardware.threads=1", *overrides]  # whatever cores there are
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    main("llm.train", train)
                except SystemExit as end:
                    code = end.code
            ends.append(Ended(code, out.getvalue(), err.getvalue()))
        return ends

    answers = in_processes(size, work)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [[by_job[i] for by_job in answers] for i in range(len(jobs))]
