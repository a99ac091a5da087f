"""Ctrl-C, SIGTERM and SIGUSR1, heard between two steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llm.config.errors import Interrupted

#: SIGUSR1 is what SLURM sends some time before a limit (`sbatch --signal=USR1@120`).
STOPPING = tuple(
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGUSR1")
    if hasattr(signal, name)  # Windows knows no SIGUSR1
)


class StopSignals:
    """While entered, these signals are noted instead of obeyed; a second one is obeyed, unless
    it comes within a second: torchrun passes on what the terminal has sent already.

    Systems and threads that cannot have handlers go on as they were.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._obeys = False
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._note)
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While this is entered, these signals are obeyed, one that was noted before as well."""
        with self:
            if self.received is not None:
                raise Interrupted(self.received)
            self._obeys = True
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._obeys:
            raise Interrupted(number)
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
        elif now > self._since + 1:
            raise KeyboardInterrupt

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
