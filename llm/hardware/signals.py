"""Ctrl-C and SIGTERM, heard between two steps."""

import signal
import threading
from types import FrameType


class StopSignals:
    """While entered, SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed.

    Systems and threads that cannot have handlers go on as they were.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
