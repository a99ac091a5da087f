"""The process that copies a run's logs to Weights & Biases: `python -m …wandb_process RUN`.

It reads the logs from their first line, follows them while the run lives, and ends when its
standard input says how the run ended: with a number, its exit code, or without a word, which means
that the run was killed and is to be shown as crashed. Nobody waits for this process, so it may be
slow.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm.tracking.points import Points
from llm.tracking.wandb_mirror import JOB, LOG, NEWS, NOT_SENT, SAMPLES

#: Seconds between two looks at the logs.
PERIOD = 0.5
#: Seconds that the process may outlive the one that started it, whatever wandb is doing.
AFTERLIFE = 60.0
#: Names of metrics a run: W&B slows down beyond 10,000 a project.
MAX_NAMES = 1000
#: Rows of the table of samples.
MAX_SAMPLES = 100
#: wandb refuses a histogram of more bins.
MAX_BINS = 512
#: wandb refuses a table of more rows than 200,000, and draws far fewer.
MAX_CELLS = 10_000
#: Seconds between two transmissions of wandb's service, unless it was set.
TRANSMISSION = 15.0
#: What the service says, on standard error only, when W&B refuses points for good.
REFUSAL = b"Fatal error while uploading"


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
        sys.stdin.read()  # until whoever waits for the last points, and limits that, is gone too
        time.sleep(AFTERLIFE)
        os._exit(1)  # wandb hangs, in whichever call


class Mirror:
    """One wandb run, and what of our rows it can show."""

    def __init__(self, run: Path, job: dict[str, Any]):
        self.run_folder, self.folder = run, run / "wandb"
        self.names: set[str] = set()
        self.full = False  # no room for more names, as was said
        self.refused = False
        self.heard = 0  # bytes of what the service said
        self.online, self.sync = job["mode"] == "online", job["sync"]
        self.samples: list[tuple[Any, ...]] = []
        _quiet_surroundings(self.folder)
        import wandb  # a second or more

        self.wandb: Any = wandb
        for old in self.folder.glob("offline-run-*"):
            # The new copy starts at the first step, so that `wandb sync` on both would clash.
            (self.folder / "earlier").mkdir(exist_ok=True)
            old.rename(self.folder / "earlier" / old.name)
        if self.online:
            try:
                self.run = self._init(job, "online")
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                self.tell(
                    f"cannot go online ({reason}); it keeps an offline copy instead, "
                    f"which {self.sync} sends"
                )
                self.online = False
                wandb.teardown()  # its service would hold the id as one in use
        if not self.online:
            self.run = self._init(job, "offline")
        if job["new"] and self.run.starting_step > 0:
            self.tell(f"has steps up to {self.run.starting_step - 1} of this run, and keeps them")
        self.run.define_metric("tokens")
        self.run.define_metric("flops")
        for section in ("train", "val", "moe", "perf", "data", "grad_norm", "update_ratio"):
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
                disable_git=True,  # run.json has the commit, and hashing a large tree takes time
                disable_code=True,
                save_code=False,
                disable_job_creation=True,
                x_save_requirements=False,
                x_disable_meta=True,
                x_disable_machine_info=not job["system_stats"],
                x_disable_stats=not job["system_stats"],
                x_transaction_log_flush_interval=PERIOD,
                x_update_finish_state=not job["killed"],
                init_timeout=job["init_timeout"],
                login_timeout=job["init_timeout"],
            ),
        )

    def tell(self, line: str) -> None:
        """One line for the person at the console, who sees it with the run's next point."""
        with open(self.folder / NEWS, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def look(self) -> None:
        """Notice, once, that W&B takes no more of this run (a key withdrawn, a run deleted)."""
        if not self.online or self.refused:
            return
        with open(self.folder / LOG, "rb") as file:
            file.seek(self.heard)
            said = file.read()
        self.heard += said.rfind(b"\n") + 1
        if REFUSAL in said:
            self.refused = True
            self.tell(f"refuses this run's points from now on; {self.sync} sends the rest")

    def log(self, step: int, row: dict[str, Any]) -> None:
        if "samples" in row:
            row["samples"] = self._table(step, row["samples"])
        if step < self.run.starting_step:
            return  # an online run that goes on: its server has these
        shown: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(value, list) and value and isinstance(value[0], list):
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

    def leave(self) -> None:
        """Go without a word to W&B, which then hears no more of the run and calls it crashed.

        What was logged is sent first, where it can be: the service has no word for that, but
        sends every so often.
        """
        interval = TRANSMISSION if self.online else 0.0
        if self.online:
            interval = self.run.settings.x_file_stream_transmit_interval or interval
        time.sleep(interval + 2 * PERIOD)
        os._exit(0)  # an orderly exit would be reported to W&B as the run's

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
    # Warnings go to the log of this process, and nothing else.
    os.environ |= {"WANDB_SILENT": "false", "WANDB_SHOW_INFO": "false"}


def _detach() -> None:
    """Take standard input for ourselves: wandb's service process would inherit it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # sent to all of a job; the run decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)  # the second or two of importing wandb should not be the training loop's
    sys.stdin = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def main(run: Path) -> int:
    """Copy `run` until it is over; 0 where W&B has it as it was asked to."""
    _detach()
    ending = Ending()
    job = json.loads((run / "wandb" / JOB).read_text())
    # The process of an attempt that was killed may be sending still, to the same W&B run.
    with FileLock(run / "wandb" / "lock"):
        mirror = Mirror(run, job)
        points = Points(run, run / "wandb" / SAMPLES, job["flops_per_token"], mirror.tell)
        over = False
        while not over:
            over = ending.over.wait(PERIOD)
            # The last step of a killed run is sent, with all that belongs to it, when it goes on.
            complete = over and ending.code is not None and not job["killed"]
            for step, row in points.ready(complete):
                mirror.log(step, row)
            mirror.look()
        if ending.code is None:
            mirror.leave()
        mirror.run.finish(exit_code=ending.code)
        mirror.look()
        as_asked = mirror.online == (job["mode"] == "online") and not mirror.refused
        return 0 if as_asked else NOT_SENT


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
