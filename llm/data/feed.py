"""The next step's rows, read while this step is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from llm.data.batches import Batch


class Feed:
    """Draws batches one ahead, in a thread; which ones they are does not depend on it.

    Args:
        draw: from a row number to the rows of a step that begins there
        ahead: False draws each when it is asked for
    """

    def __init__(self, draw: Callable[[int], Batch], ahead: bool = True):
        self.draw, self.reads_ahead = draw, ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def take(self, first: int, following: int) -> Batch:
        """The step that begins at row `first`; `following` is where the next one is expected."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == first:
            batch = ahead[1].result()
        else:
            batch = self.draw(first)
        if self.reads_ahead:
            self._ahead = (following, self._thread.submit(self.draw, following))
        return batch

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
