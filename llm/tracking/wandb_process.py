"""The process that copies a run's logs to Weights & Biases: `python -m …wandb_process RUN`.

It reads the logs from their first line, follows them while the run lives, and ends when its
standard input does: with a number on it, the run's exit code, or without a word, which means that
the run was killed and is to be shown as crashed. Nobody waits for this process, so it may be slow.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.tracking.log import MetricLog, PerfLog, parse
from llm.tracking.wandb_mirror import JOB, NEWS, SAMPLES

#: Seconds between two looks at the logs.
PERIOD = 0.5
#: Seconds that the process may outlive the run, whatever wandb is doing.
AFTERLIFE = 60.0
#: Names of metrics a run: W&B slows down beyond 10,000 a project.
MAX_NAMES = 1000
#: Rows of the table of samples.
MAX_SAMPLES = 100
#: wandb refuses a histogram of more bins.
MAX_BINS = 512
#: wandb refuses a table of more rows than 200,000, and draws far fewer.
MAX_CELLS = 10_000


class Ending:
    """How the run ended: `code` is None while it lives, and for one that was killed."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.code: int | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        word = sys.stdin.readline().strip()
        self.code = int(word) if word else None
        self.over.set()
        time.sleep(AFTERLIFE)
        os._exit(1)  # wandb hangs, in whichever call


class Follower:
    """The rows that were appended to a log since the last look."""

    def __init__(self, path: Path):
        self.path = path
        self.position = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        yield from parse(whole, self.path)


class Points:
    """Joins the logs to one row a step, in order, since W&B takes steps only in order."""

    def __init__(self, run: Path, flops_per_token: float | None):
        self.metrics = Follower(run / MetricLog.filename)
        self.perf = Follower(run / PerfLog.filename)
        self.samples = Follower(run / "wandb" / SAMPLES)
        self.flops_per_token = flops_per_token
        self.waiting: dict[int, dict[str, Any]] = {}
        self.last_step = -1  # of the metric log

    def ready(self, over: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """Steps that are complete, each with its row: those before the last one of the metric
        log, to which more may still come, and at the end that one too. What other logs have
        beyond it belongs to steps that were lost with a killed run, and will be replaced."""
        for row in self.metrics.rows():
            step, tokens = row.pop("step"), row["tokens"]
            if self.flops_per_token is not None:
                row["flops"] = tokens * self.flops_per_token
            self._at(step).update(row)
            self.last_step = step
        for row in self.perf.rows():
            step, tokens = row.pop("step"), row.pop("tokens")
            row = {name if "/" in name else f"perf/{name}": row[name] for name in row}
            self._at(step).update({"tokens": tokens, **row})
        for row in self.samples.rows():
            self._at(row.pop("step")).setdefault("samples", []).append(row)
        for step in sorted(self.waiting):
            if step < self.last_step or (over and step == self.last_step):
                yield step, self.waiting.pop(step)

    def _at(self, step: int) -> dict[str, Any]:
        return self.waiting.setdefault(step, {})


class Mirror:
    """One wandb run, and what of our rows it can show."""

    def __init__(self, run: Path, job: dict[str, Any]):
        self.run_folder, self.folder = run, run / "wandb"
        self.names: set[str] = set()
        self.full = False  # no room for more names, as was said
        self.samples: list[tuple[Any, ...]] = []
        _quiet_surroundings(self.folder)
        import wandb  # a second or more

        self.wandb: Any = wandb
        for old in self.folder.glob("offline-run-*"):
            # The new copy starts at the first step, so that `wandb sync` on both would clash.
            (self.folder / "earlier").mkdir(exist_ok=True)
            old.rename(self.folder / "earlier" / old.name)
        if job["mode"] == "online":
            try:
                self.run = self._init(job, "online")
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                self.tell(f"cannot go online ({reason}); it keeps an offline copy instead")
                wandb.teardown()  # its service would hold the id as one in use
                self.run = self._init(job, "offline")
        else:
            self.run = self._init(job, "offline")
        self.run.define_metric("tokens")
        self.run.define_metric("flops")
        for section in ("train", "val", "moe", "perf", "data"):
            self.run.define_metric(f"{section}/*", step_metric="tokens")

    def _init(self, job: dict[str, Any], mode: str) -> Any:
        return self.wandb.init(
            mode=mode,
            id=job["run_id"],
            name=job["run_id"],
            resume="allow",
            reinit="create_new",
            project=job["project"],
            entity=job["entity"],
            group=job["group"],
            tags=job["tags"],
            config=flat(job["config"]),
            dir=str(self.folder.parent),
            settings=self.wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,  # run.json has the commit, and hashing a large tree takes time
                disable_code=True,
                save_code=False,
                disable_job_creation=True,
                x_save_requirements=False,
                x_disable_meta=True,
                x_disable_machine_info=not job["system_stats"],
                x_disable_stats=not job["system_stats"],
                x_transaction_log_flush_interval=PERIOD,
                init_timeout=job["init_timeout"],
                login_timeout=job["init_timeout"],
            ),
        )

    def tell(self, line: str) -> None:
        """One line for the person at the console, who sees it with the run's next point."""
        with open(self.folder / NEWS, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def log(self, step: int, row: dict[str, Any]) -> None:
        if step < self.run.starting_step:
            return  # an online run that goes on: its server has these
        shown: dict[str, Any] = {}
        for name, value in row.items():
            if name == "samples":
                shown[name] = self._table(step, value)
            elif isinstance(value, list) and value and isinstance(value[0], list):
                shown[name] = self._grid(value)
            elif isinstance(value, list):
                shown[name] = self._bars(value)
            elif isinstance(value, str) and value.endswith(".png"):
                shown[name] = self._picture(value)
            else:
                shown[name] = value
        new = [name for name in shown if shown[name] is not None and name not in self.names]
        room = MAX_NAMES - len(self.names)
        if len(new) > room and not self.full:
            self.full = True
            self.tell(f"shows the first {MAX_NAMES} names of metrics only, and leaves out the rest")
        self.names.update(new[:room])
        self.run.log({n: v for n, v in shown.items() if n in self.names}, step=step, commit=True)

    def _bars(self, values: list[Any]) -> Any:
        """Expert i's value as the height of bar i, which W&B draws as a heat map over time."""
        heights = [0.0 if value is None else value for value in values][:MAX_BINS]
        if not heights:
            return None
        return self.wandb.Histogram(np_histogram=(heights, list(range(len(heights) + 1))))

    def _grid(self, rows: list[list[Any]]) -> Any:
        """Layers × experts as one table, so that the number of names does not grow with either."""
        cells = [
            (layer, expert, value)
            for layer, values in enumerate(rows)
            for expert, value in enumerate(values)
        ]
        return self.wandb.Table(columns=["layer", "expert", "value"], data=cells[:MAX_CELLS])

    def _picture(self, path: str) -> Any:
        """A picture in the run directory, which the log names; it may be gone by now."""
        file = self.run_folder / path
        return self.wandb.Image(str(file)) if file.is_file() else None

    def _table(self, step: int, samples: list[dict[str, Any]]) -> Any:
        columns = ["step", *samples[0]]
        self.samples += [(step, *(row.get(name) for name in columns[1:])) for row in samples]
        self.samples = self.samples[-MAX_SAMPLES:]
        return self.wandb.Table(columns=columns, data=[list(row) for row in self.samples])


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"d_model": 64}} as {"model.d_model": 64}."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def _quiet_surroundings(folder: Path) -> None:
    """Keep wandb to the run directory, unless the user has chosen other places for it."""
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(name, str(folder / "cache"))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports of its own crashes
    os.environ["WANDB_SILENT"] = "true"


def _detach() -> None:
    """Take standard input for ourselves: wandb's service process would inherit it."""
    for name in ("SIGINT", "SIGTERM"):  # sent to all of a job; the run decides what they mean
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)  # the second or two of importing wandb should not be the training loop's
    sys.stdin = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def main(run: Path) -> None:
    _detach()
    ending = Ending()
    job = json.loads((run / "wandb" / JOB).read_text())
    mirror = Mirror(run, job)
    points = Points(run, job["flops_per_token"])
    over = False
    while not over:
        over = ending.over.wait(PERIOD)
        for step, row in points.ready(over):
            mirror.log(step, row)
    if ending.code is None:
        time.sleep(2 * PERIOD)  # until wandb's service has flushed what it was given
        os._exit(0)  # an orderly exit would be reported to W&B as the run's
    mirror.run.finish(exit_code=ending.code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
