"""One job in the hands of the local launcher: its state, its process, how far it is."""

import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llm.config.outcome import Outcome, SweepJob

State = Literal["waiting", "running", "finished", "failed", "refused", "interrupted", "pruned"]

#: A line of llm.tracking.progress: " 34% 1:05 left, loss 2.1, …".
_PROGRESS = re.compile(r"^\s*(\d+)% (\S+) left, (.*)$")


@dataclass
class Task:
    """A job, its attempts and its outcome."""

    job: SweepJob
    folder: Path | None = None  # of the run that answers it, where known before
    arm: str = ""  # the same for the jobs that differ in their seed only
    device: str = "cpu"
    memory: float = 0.0  # bytes that it is expected to take
    shares: "Task | None" = None  # the same run as this earlier one
    outcome: Outcome | None = None
    at_once: bool = False  # answered without a process
    hopeless: str | None = None  # why it was told to stop
    attempts: int = 0
    not_before: float = 0.0
    process: "subprocess.Popen[bytes] | None" = None
    gpu: str | None = None
    began: float = 0.0
    seconds: float = 0.0
    _progress: tuple[float, str, str] = field(default=(0.0, "", ""), repr=False)
    _seen: int = 0

    @property
    def run(self) -> str | None:
        return self.folder.name if self.folder else None

    @property
    def state(self) -> State:
        if self.process is not None:
            return "running"
        if self.outcome is None:
            return "waiting"
        if self.outcome.pruned:
            return "pruned"
        if self.outcome.exit in (130, 143):
            return "interrupted"
        return {0: "finished", 2: "refused"}.get(self.outcome.exit, "failed")  # type: ignore[return-value]

    @property
    def log(self) -> Path:
        return Path(self.job.folder) / "jobs" / f"{self.job.number:04}.log"

    def progress(self) -> tuple[float, str, str]:
        """Share done, time left and figures, as the job last said in its log."""
        try:
            with open(self.log, "rb") as file:
                file.seek(self._seen)
                text = file.read()
        except OSError:
            return self._progress
        whole = text[: text.rfind(b"\n") + 1]
        self._seen += len(whole)
        for line in reversed(whole.decode(errors="replace").splitlines()):
            match = _PROGRESS.match(line)
            if match:
                self._progress = float(match[1]) / 100, match[2], match[3]
                break
        return self._progress

    def spent(self) -> float:
        return time.monotonic() - self.began if self.process is not None else self.seconds
