"""Several processes of one job, as torchrun starts them, without what starting costs.

They are forked from the test's process, which has imported torch already.
"""

import io
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from tests.toy import Ended


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
        try:
            answer = work(rank)
        except BaseException as problem:
            answer = problem
        results[rank][1].send(answer)
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    answers = [receiver.recv() if receiver.poll(300) else TimeoutError() for receiver, _ in results]
    for process in processes:
        process.kill()
        process.join()
    return answers


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
