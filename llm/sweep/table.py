"""One table of all jobs on standard error: live on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from collections import Counter
from typing import TextIO

from llm.sweep.task import Task
from llm.tracking.progress import clock

#: Seconds between two summaries where there is no terminal.
LINE_EVERY = 30.0
_BAR = 16


class Table:
    """Shows tasks until it is closed.

    Args:
        slots: jobs at a time, for the time left
    """

    def __init__(self, tasks: list[Task], slots: int, stream: TextIO | None = None):
        self.tasks, self.slots = tasks, slots
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self._lines = 0
        self._next = 0.0

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
        self.erase()
        print(line, file=self.stream, flush=True)
        self._next = self._next if not self.live else 0.0

    def show(self) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.5 if self.live else LINE_EVERY)
        if not self.live:
            print(self.summary(), file=self.stream, flush=True)
            return
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in self.lines(size.lines - 3)]
        self.erase()
        print("\n".join(lines), file=self.stream, flush=True)
        self._lines = len(lines)

    def close(self) -> None:
        self._next = 0.0
        if self.tasks:
            self.show()
        self._lines = 0

    def summary(self) -> str:
        """ "12 jobs: 3 finished, 2 running, 7 waiting; 4:32 left"."""
        counts = Counter(task.state for task in self.tasks)
        names = ("finished", "running", "waiting", "pruned", "failed", "refused", "interrupted")
        told = ", ".join(f"{counts[name]} {name}" for name in names if counts[name])  # type: ignore[index]
        left = self.seconds_left()
        rest = f"; {clock(left)} left" if left else ""
        return f"{len(self.tasks)} jobs: {told}{rest}"

    def lines(self, room: int) -> list[str]:
        """The summary, then a line a job: running first, what waits last."""
        order = ["running", "failed", "refused", "interrupted", "waiting", "pruned", "finished"]
        rows = sorted(self.tasks, key=lambda t: (order.index(t.state), t.job.number))
        shown = [self.row(task) for task in rows[:room]]
        more = [f"  and {len(rows) - room} more"] if len(rows) > room else []
        return [self.summary(), *shown, *more]

    def row(self, task: Task) -> str:
        name = f"{task.job.number:4} {task.job.swept or task.job.sweep}"
        if task.state == "running":
            share, left, figures = task.progress()
            bar = "█" * round(_BAR * share)
            told = f"{left} left, {figures}" if left else f"starting, {clock(task.spent())}"
            return f"{name}  {share:4.0%} {bar:·<{_BAR}} {told}"
        if task.state == "finished":
            assert task.outcome is not None
            loss = task.outcome.val_loss
            figure = f"  val/loss {loss:.4f}" if loss is not None else ""
            return f"{name}  finished{figure}" + ("  (before)" if task.at_once else "")
        if task.state == "interrupted":
            return f"{name}  interrupted"
        if task.outcome is not None:
            return f"{name}  {task.state}: {task.outcome.problem}"
        if task.attempts:
            wait = max(task.not_before - time.monotonic(), 0.0)
            return f"{name}  again in {wait:.0f} s"
        return f"{name}  waiting"

    def seconds_left(self) -> float:
        """From what finished jobs took and how far the running ones are; 0 where unknown."""
        took = [t.seconds for t in self.tasks if t.state == "finished" and t.seconds]
        running = [t for t in self.tasks if t.state == "running"]
        shares = [(t.spent(), t.progress()[0]) for t in running]
        took += [spent / share for spent, share in shares if share > 0.05]
        if not took:
            return 0.0
        mean = sum(took) / len(took)
        waiting = sum(t.state == "waiting" and t.shares is None for t in self.tasks)
        rest = [max(spent / s - spent if s > 0.05 else mean - spent, 0.0) for spent, s in shares]
        return max((mean * waiting + sum(rest)) / self.slots, *rest, 0.0)

    def erase(self) -> None:
        """Make room for lines of others."""
        if self.live and self._lines:
            self.stream.write(f"\033[{self._lines}A\033[J")
            self._lines = 0
