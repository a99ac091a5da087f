"""Checkpoints written while training goes on: one thread, one checkpoint at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from llm.runs import checkpoint
from llm.runs.checkpoint import Snapshot
from llm.runs.directory import Run

#: Checkpoints that are kept beside those that `train.keep_every` keeps: should the newest be
#: damaged, there is one before it.
_NEWEST = 2


class CheckpointWriter:
    """Writes the checkpoints of a run, and its best weights, behind the back of training.

    A write that the disk refuses loses nothing that is there; it is told in one line, and
    training goes on to the next one.

    Args:
        regular: steps between checkpoints (`train.checkpoint_every`)
        every: steps between checkpoints that are kept for ever, None for none
        say: prints a line
    """

    def __init__(self, run: Run, regular: int, every: int | None, say: Callable[[str], None]):
        self.run, self.regular, self.every, self.say = run, regular, every, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._what = ""

    def put(
        self,
        step: int,
        content: Snapshot,
        state: dict[str, Any] | None,
        best: dict[str, Any] | None,
    ) -> None:
        """Write a checkpoint with `state` and, with `best`, the best weights; either may be None.

        Waits for the write before, so that there are never two copies in memory.
        """
        self.settle()
        self._what = f"checkpoint at step {step}" if state else f"copy of the best, of step {step}"

        def write() -> None:
            if best is not None:
                checkpoint.write(self.run.best, step, Snapshot(content.model, None), best)
                origins = checkpoint.latest(self.run.checkpoints, _NEWEST, self.regular)
                checkpoint.prune_best(self.run.best, origins)
            if state is not None:
                checkpoint.write(self.run.checkpoints, step, content, state)
                checkpoint.prune(self.run.checkpoints, _NEWEST, self.regular, self.every)

        self._written = self._thread.submit(write)

    def look(self) -> None:
        """Tell of a write that has failed meanwhile; costs nothing."""
        if self._written is not None and self._written.done():
            self.settle()

    def settle(self, needed: bool = False) -> None:
        """Wait for the write in flight.

        Args:
            needed: raise its OSError instead of telling it
        """
        written, self._written = self._written, None
        if written is None:
            return
        try:
            written.result()
        except OSError as error:
            if needed:
                raise
            self.say(f"no {self._what}: {error}; {last_good(self.run)}")

    def close(self) -> None:
        self.settle()
        self._thread.shutdown()


def how_to_go_on(run: Run) -> str:
    """What whoever stopped a run wants to know."""
    kept = checkpoint.list_steps(run.checkpoints)
    if not kept:
        return "interrupted before its first checkpoint; the same command begins anew"
    step = int(kept[-1].name.rpartition("-")[2])
    return f"saved at step {step}; the same command goes on from there"


def last_good(run: Run) -> str:
    """Where a run stands on disk, for the line that says why it stopped."""
    kept = checkpoint.list_steps(run.checkpoints)
    return f"last good checkpoint: {kept[-1]}" if kept else "there is no checkpoint yet"
