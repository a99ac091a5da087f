"""A process that does one job of a sweep from the sweep's snapshot.

    python -P -m llm.sweep.process JOB.json     (started by a launcher, never by hand)

It dies with the process that started it, however that dies: its standard input is a pipe on
which nothing is ever written, and which ends when the other side is gone.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llm.config.choices import Choices
from llm.config.errors import Interrupted
from llm.config.outcome import Outcome, SweepJob, perform
from llm.runs.files import write_json
from llm.sweep.snapshot import environment

if TYPE_CHECKING:
    from llm.config.jobs import Jobs


def start(
    jobs: "Jobs", job: SweepJob, log: IO[bytes] | None, extra: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the process of a job.

    Args:
        jobs: the sweep's, with its snapshot
        log: where its output goes, None for this process's own
        extra: variables beside those of this process
    """
    assert jobs.snapshot is not None
    file = job_file(job)
    file.parent.mkdir(parents=True, exist_ok=True)
    task = {"module": jobs.command, "task": jobs.task.__name__, "conf": jobs.choices.top}
    write_json(file, {**task, "job": asdict(job)})
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "llm.sweep.process", str(file)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={**environment(jobs.snapshot), **extra},
        start_new_session=True,  # Ctrl-C is for the launcher, which then sends SIGTERM
    )


def outcome_of(job: SweepJob, code: int) -> Outcome:
    """What a process that ended with `code` left; it may have been killed."""
    try:
        told = json.loads(outcome_file(job_file(job)).read_bytes())
    except (OSError, ValueError):
        told = None
    for file in (job_file(job), outcome_file(job_file(job))):
        file.unlink(missing_ok=True)
    if told is not None:
        return Outcome(**told)
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return Outcome(job.number, job.overrides, code, f"killed by {name}{hint}")
    problem = "interrupted" if code in (130, 143) else f"ended with code {code}"
    return Outcome(job.number, job.overrides, code or 1, problem)


def do_in_a_process(jobs: "Jobs", job: SweepJob) -> Outcome:
    """Start, wait, and say what came of it: for launchers that bring processes of their own."""
    process = start(jobs, job, None, {})
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return outcome_of(job, code)


def job_file(job: SweepJob) -> Path:
    """Where the process finds its job; this launcher's own, as several may run one sweep."""
    return Path(job.folder) / "jobs" / f".{job.number:04}-{os.getpid()}.json"


def outcome_file(file: Path) -> Path:
    """Where the process leaves what came of the job in `file`."""
    return file.with_suffix(".outcome")


def _die_with_the_parent() -> None:
    """Kill this process when standard input ends; libraries get another standard input."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def main(file: Path) -> int:
    """Do the job that `file` describes; the exit code of the process."""
    told: dict[str, Any] = json.loads(file.read_bytes())
    job = SweepJob(**told["job"])
    snapshot = Path(__file__).parent.parent.parent
    choices = Choices(None, sorted((snapshot / "others").glob("*")), told["conf"])
    task = getattr(importlib.import_module(told["module"]), told["task"])
    try:
        outcome = perform(job, choices, task)
    except Interrupted as interrupt:
        return interrupt.exit_code
    except KeyboardInterrupt:
        return 130
    write_json(outcome_file(file), asdict(outcome))
    return max(outcome.exit, 0)


if __name__ == "__main__":
    _die_with_the_parent()
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
