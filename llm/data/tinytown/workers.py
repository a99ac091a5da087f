"""Documents from several processes, in the order in which one process would write them.

Workers are fresh interpreters that import this package and numpy only. They are neither forks
(unsafe once torch has started its threads) nor children of `multiprocessing` (which would import
the main module, and torch with it, again).
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

#: Documents of one job: about 3 s, many times what a fresh interpreter takes to start.
CHUNK = 4000

#: Never in a text, so that it separates them.
_SEPARATOR = "\x00"


def texts_in_parallel(
    parameters: dict[str, Any], split: str, count: int, workers: int
) -> Iterator[str]:
    """The first `count` texts of one split of `Tinytown(**parameters)`."""
    starts = deque(range(0, count, CHUNK))
    jobs: deque[Future[list[str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while starts or jobs:
                while starts and len(jobs) < 2 * workers:  # so many wait in memory at most
                    start = starts.popleft()
                    stop = min(start + CHUNK, count)
                    jobs.append(pool.submit(_work, parameters, split, start, stop))
                yield from jobs.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _work(parameters: dict[str, Any], split: str, start: int, stop: int) -> list[str]:
    command = "from llm.data.tinytown.workers import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, json.dumps([parameters, split, start, stop])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        raise RuntimeError(f"a worker of tinytown failed: {done.stderr.decode()[-2000:]}")
    return done.stdout.decode().split(_SEPARATOR)


def main() -> None:
    """What a worker does: the texts that its command line asks for, to standard output."""
    from llm.data.tinytown.source import Tinytown

    parameters, split, start, stop = json.loads(sys.argv[1])
    texts = Tinytown(**parameters).texts(split, start, stop)
    sys.stdout.buffer.write(_SEPARATOR.join(texts).encode())
