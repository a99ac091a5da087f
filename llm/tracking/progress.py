"""What a person sees while a run trains, on standard error.

On a terminal a bar; elsewhere plain lines, since a bar's carriage returns make one endless line
of a log file. Standard output is left alone: its last line is the run directory.
"""

import math
import sys
import time
from types import TracebackType
from typing import TextIO

from llm.config.terminal import shown

#: Seconds between two lines where there is no terminal.
LINE_EVERY = 10.0
#: What matters most comes first: a narrow terminal cuts the end off.
_BAR = "{percentage:3.0f}% {bar:16} {remaining} left, {desc}"


class Progress:
    """Progress through a budget of `total` units (steps, tokens, FLOPs, minutes), begun at `start`.

    `unit` stands behind the numbers ("tok", "steps", "flops", "min"). `quiet` shows nothing at
    all, for every process of a job but the first. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        total: float,
        unit: str,
        start: float = 0.0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ):
        self.total = total
        self.unit = unit
        self.start = start
        self.done = start
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._began = time.monotonic()
        self._next_line = self._began + LINE_EVERY
        self._val_loss: float | None = None
        self._bar = None
        if not quiet and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=start,
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0.1,
                bar_format=_BAR,
            )
            self._bar.set_description_str(self._amount())

    @property
    def fraction(self) -> float:
        """How much of the budget is spent, in [0, 1]."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 1.0

    def update(
        self,
        done: float,
        *,
        step: int | None = None,
        loss: float | None = None,
        val_loss: float | None = None,
        tokens_per_second: float | None = None,
        imbalance: float | None = None,
        epoch: float | None = None,
        tokens: int | None = None,
        documents: int | None = None,
    ) -> None:
        """`done` units of the budget are spent, those before `start` included.

        Losses in nats per token; `val_loss` only just after an evaluation (it stays on show);
        `imbalance` is the largest load of an expert over the mean one; `epoch`, `tokens` and
        `documents` are what was read so far. Cheap enough for every step: a terminal is drawn ten
        times a second at most.
        """
        self.done = done
        if val_loss is not None:
            self._val_loss = val_loss
        if self._quiet:
            return
        now = time.monotonic()
        due = now >= self._next_line or val_loss is not None
        if self._bar is None and not due:
            return
        parts = [
            f"loss {loss:.3f}" if loss is not None else "",
            f"val {self._val_loss:.3f}" if self._val_loss is not None else "",
            f"{brief(tokens_per_second)} tok/s" if tokens_per_second is not None else "",
            self._amount(),
            f"imbalance {imbalance:.2f}" if imbalance is not None else "",
            f"epoch {epoch:.3g}" if epoch is not None else "",
            f"{brief(tokens)} tokens" if tokens is not None else "",
            f"{brief(documents)} documents" if documents is not None else "",
            f"step {step:,}" if step is not None else "",
        ]
        text = ", ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(min(done, self.total) - self._bar.n)
            if val_loss is not None:
                self._bar.refresh()
        else:
            self._next_line = now + LINE_EVERY
            self._write(f"{self.fraction:4.0%} {self._time_left(now)} left, {text}")

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar where there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(shown(line, self._stream), file=self._stream)
        else:
            self._write(line)

    def doing(self, what: str) -> None:
        """Show what goes on after the last step, in place of the figures and of the time left."""
        if self._bar is not None:
            self._bar.bar_format = f"{_BAR.partition(' {remaining}')[0]} {what}"
            self._bar.refresh()
        elif not self._quiet:
            self._write(what)

    def close(self) -> None:
        """Leave the bar as it stands, with the last figures. May be called twice."""
        if self._bar is not None:
            self._bar.bar_format = _BAR
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _amount(self) -> str:
        return f"{brief(min(self.done, self.total))}/{brief(self.total)} {self.unit}"

    def _time_left(self, now: float) -> str:
        spent = self.done - self.start
        if spent <= 0:
            return "?"
        return clock((now - self._began) / spent * max(self.total - self.done, 0.0))

    def _write(self, line: str) -> None:
        try:
            print(shown(line, self._stream), file=self._stream, flush=True)
        except OSError:  # nobody reads it any more, or the disk is full: training goes on
            self._quiet = True


def brief(number: float) -> str:
    """Three significant figures and a letter: 20480 as 20.5k, 1e15 as 1P; below 10,000 in full."""
    if not math.isfinite(number):
        return str(number)
    if abs(number) < 10_000:
        return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:.3g}"
    for letter, size in zip("kMGTPEZ", (10.0 ** (3 * i) for i in range(1, 8)), strict=True):
        shown = f"{number / size:.3g}"
        if abs(float(shown)) < 1000:
            return shown + letter
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """75 as 1:15, 3675 as 1:01:15."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
