"""A run's logs, followed while they grow and joined to one row a step.

For whoever shows the run elsewhere, and can take each step once and in order only.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm.tracking.log import MetricLog, PerfLog, parse

#: Bytes of a log that are read at once: a log may be larger than memory, a line is not.
PIECE = 1 << 24


class Follower:
    """The rows that were appended to a log since the last look.

    Args:
        options: of `llm.tracking.log.parse`
    """

    def __init__(self, path: Path, **options: Any):
        self.path, self.options = path, options
        self.position = 0
        self.begun_anew = False  # the log was cut back since the last look
        self._last = b""  # the line before the position

    def rows(self) -> list[dict[str, Any]]:
        """The next piece of them. A log that was cut back begins again at its first row."""
        self.begun_anew = False
        text = self._read()
        if not text.startswith(self._last):
            self.position, self._last, self.begun_anew = 0, b"", True
            text = self._read()
        whole = text[len(self._last) : text.rfind(b"\n") + 1]
        if not whole:
            return []
        self.position += len(whole)
        self._last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        return parse(whole, self.path, **self.options)

    def _read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position - len(self._last))
                return file.read(len(self._last) + PIECE)
        except FileNotFoundError:
            return b""


class Points:
    """Joins the logs of the run directory `run` to one row a step, each once and in order.

    Args:
        samples: a third log beside the two, of texts: any number of lines a step
        flops_per_token: for a metric `flops`, None for none
        tell: is told where the log was cut back behind steps that are given out already
    """

    def __init__(
        self,
        run: Path,
        samples: Path,
        flops_per_token: float | None,
        tell: Callable[[str], None],
    ):
        self.metrics = Follower(run / MetricLog.filename)
        self.perf = Follower(run / PerfLog.filename)
        self.samples = Follower(samples, keys=["step"])
        self.flops_per_token = flops_per_token
        self.tell = tell
        self.waiting: dict[int, dict[str, Any]] = {}
        self.last_step = -1  # of the metric log
        self.gone = -1  # the last step that was given out
        self.went_back = False

    def ready(self, complete: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """Steps that are complete, each with its row: those before the last one of the metric
        log, to which more may still come, and with `complete` that one too. What other logs have
        beyond it belongs to steps that were lost with a killed run, and will be replaced."""
        while self._read():
            yield from self._up_to(self.last_step - 1)
        if self.went_back and self.gone > self.last_step:
            steps = f"steps {self.last_step + 1} to {self.gone}"
            self.tell(f"keeps {steps} as they were before the run went back")
        self.went_back = False
        if complete:
            yield from self._up_to(self.last_step)

    def _read(self) -> bool:
        """Join another piece of the logs; False where the metric log has no more."""
        rows = self.metrics.rows()
        if self.metrics.begun_anew:
            self.waiting.clear()
            self.last_step, self.went_back = -1, True
        for row in rows:
            step, tokens = row.pop("step"), row["tokens"]
            if self.flops_per_token is not None:
                row["flops"] = tokens * self.flops_per_token
            self._at(step).update(row)
            self.last_step = step
        while found := self.perf.rows():
            for row in found:
                step, tokens = row.pop("step"), row.pop("tokens")
                row = {name if "/" in name else f"perf/{name}": row[name] for name in row}
                self._at(step).update({"tokens": tokens, **row})
            if step >= self.last_step:
                break
        for row in self.samples.rows():
            texts = self._at(row.pop("step")).setdefault("samples", [])
            if row not in texts:  # as it is where a run was killed and wrote them again
                texts.append(row)
        return bool(rows)

    def _up_to(self, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for step in sorted(step for step in self.waiting if step <= last):
            self.gone = step
            yield step, self.waiting.pop(step)

    def _at(self, step: int) -> dict[str, Any]:
        return self.waiting.setdefault(step, {}) if step > self.gone else {}
