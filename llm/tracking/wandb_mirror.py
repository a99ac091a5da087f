"""tracking=wandb: a Weights & Biases copy of the run, made by a process of its own.

The run's logs are files that only grow, so the copy needs nothing from the training loop: a child
process follows `metrics.jsonl`, `perf.jsonl` and the samples, and feeds the wandb library
(`wandb_process.py`). Importing wandb, its network, its hangs, its exit hooks and its death are
all on the other side of a process boundary; training pays for one spawn (1 ms) and an empty read
a second. In a thread instead, importing wandb stopped a loop of small operations for three to four
seconds on two cores: each of them gives the interpreter lock away and queues for it again.
Nothing that the child may do, or not do, can make the loop wait: what they say to one another goes
through files, and the one pipe carries one word, at the end.
What the child does not manage to send is still in `metrics.jsonl`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import llm
from llm.config.environment import invocation
from llm.config.errors import Refused
from llm.config.types import UNRECORDED, PositiveFloat

#: What the two sides share, in `RUN/wandb/`.
JOB, SAMPLES, NEWS, LOG = "job.json", "samples.jsonl", "news.txt", "mirror.log"
#: The child's exit code where it has said why W&B has less than it was meant to have.
NOT_SENT = 3
#: The W&B project where nobody names another.
PROJECT = "my-simple-llm"
#: What the run decides by itself, whatever W&B's variables say.
_OURS = ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR")
#: Seconds between two looks at the child: 40 µs each, too much for every step of a tiny model.
PERIOD = 1.0


class Wandb:
    """W&B, offline by default: no account, no network, `python -m llm.runs sync` sends it later.

    What is not given is as WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_TAGS say.

    mode: "online" sends points as they come, and turns to offline where that fails.
    project, entity, tags: where the run is shown; its id is the run's own id.
    init_timeout: seconds to wait for W&B's servers before going offline (training goes on).
    patience: seconds that the end of a run may wait for the last points.
    system_stats: let wandb sample CPU, GPU and memory every 15 s.
    """

    def __init__(
        self,
        *,
        mode: Annotated[Literal["offline", "online"] | None, UNRECORDED] = None,
        project: Annotated[str | None, UNRECORDED] = None,
        entity: Annotated[str | None, UNRECORDED] = None,
        tags: Annotated[list[str] | None, UNRECORDED] = None,
        init_timeout: Annotated[PositiveFloat, UNRECORDED] = 30.0,
        patience: Annotated[PositiveFloat, UNRECORDED] = 10.0,
        system_stats: Annotated[bool, UNRECORDED] = False,
    ):
        wanted = _from_environment()
        self.mode = mode or wanted.get("mode", "offline")
        self.project = project or wanted.get("project", PROJECT)
        self.entity = entity or wanted.get("entity")
        self.tags = tags or wanted.get("tags") or []
        self._overruled = [f"WANDB_{n.upper()}" for n in wanted if getattr(self, n) != wanted[n]]
        self._overruled += [name for name in _OURS if os.environ.get(name)]
        self._sync = ""
        self.init_timeout = init_timeout
        self.patience = patience
        self.system_stats = system_stats
        self._process: subprocess.Popen[bytes] | None = None
        self._news: IO[str] | None = None
        self._folder: Path | None = None
        self._next_look = 0.0
        self._say: Callable[[str], None] = _to_stderr

    def start(
        self,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        group: str | None,
        resumed_at: int,
        flops_per_token: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Begin to follow the logs in `folder`, the run directory.

        `config` is nested plain data and is flattened to dotted names; `group` is the sweep.
        Call it after the logs were cut back: the copy is made from their first line, so that a
        resumed run has each step once, whatever happened to the copy before. `resumed_at` 0 says
        that W&B should know nothing of the run yet. Never raises.
        """
        self._say = say or _to_stderr
        if self._overruled:
            self._say(
                f"W&B: {', '.join(self._overruled)} not used: what is typed as tracking.KEY wins, "
                "and a run goes by its id"
            )
        about = {"run_id": run_id, "group": group, "flops_per_token": flops_per_token}
        self._begin(Path(folder), {**about, "config": config, "new": resumed_at == 0})

    def send(
        self,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        group: str | None,
        exit_code: int | None,
        flops_per_token: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> bool:
        """Copy a run that is over, as `start` and `finish` do; whether all of it was taken.

        Without an exit code it was killed, and W&B will show it as crashed.
        """
        self._say = say or _to_stderr
        about = {"run_id": run_id, "group": group, "flops_per_token": flops_per_token}
        self._begin(Path(folder), {**about, "config": config, "killed": exit_code is None})
        return self._end_with(1 if exit_code is None else exit_code)

    def log(self, step: int, tokens: int, metrics: Mapping[str, Any]) -> None:
        """Nothing to send, since the point is in the logs; passes on what the copy has to say."""
        if self._process is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + PERIOD
            self._listen()

    def table(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Show `samples` (each with the same columns, such as prompt and text) as a table."""
        if self._folder is None or self._process is None:
            return
        lines = [json.dumps({"step": int(step), **sample}) + "\n" for sample in samples]
        try:
            with open(self._folder / SAMPLES, "a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as error:
            self._stop(f"could not take the samples ({error})")

    def finish(self, exit_code: int) -> None:
        """End the copy with the state that the run ended in; waits `patience` seconds at most.

        A process that ends without this call (killed, say) leaves a run that W&B shows as
        crashed, with what had reached the logs.
        """
        self._end_with(exit_code)

    def _begin(self, folder: Path, about: dict[str, Any]) -> None:
        if self.mode == "disabled":
            return
        self._sync = invocation("llm.runs", "sync", outputs=folder.parent.parent)
        job = {
            "sync": self._sync,
            "new": False,
            "killed": False,
            "mode": self.mode,
            "project": self.project,
            "entity": self.entity,
            "tags": self.tags,
            "init_timeout": self.init_timeout,
            "system_stats": self.system_stats,
            **about,
        }
        try:
            self._spawn(folder.absolute(), job)
        except Exception as error:  # read-only disk, no memory for a process, odd config values
            self._stop(f"could not start ({error})")

    def _spawn(self, folder: Path, job: dict[str, Any]) -> None:
        self._folder = folder / "wandb"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / JOB).write_text(json.dumps(job, default=str, indent=1))
        (self._folder / NEWS).write_text("")
        self._news = open(self._folder / NEWS, encoding="utf-8")  # noqa: SIM115 (open as the run)
        package_root = str(Path(llm.__file__).resolve().parent.parent)
        inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        # Not the same file: the process of an attempt that was killed may still write there.
        (self._folder / LOG).unlink(missing_ok=True)
        with open(self._folder / LOG, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llm.tracking.wandb_process", str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join([package_root, *inherited])}
                # the folder it stands in is called wandb and must not be imported
                | {"PYTHONSAFEPATH": "1"},
                # A group of its own, as Ctrl-C is for the loop, which then calls `finish`. In a
                # session of its own its niceness would not count: Linux shares out time by session.
                process_group=0,
            )

    def _end_with(self, exit_code: int) -> bool:
        self._listen()
        process = self._process
        if process is None:
            return False
        try:
            if process.stdin is not None:
                with suppress(OSError):  # it died meanwhile, as the wait will tell
                    process.stdin.write(f"{int(exit_code)}\n".encode())
                    process.stdin.flush()  # and not closed: that says that nobody waits any more
            code = process.wait(self.patience)
            self._listen(at_end=True)
            return code == 0
        except subprocess.TimeoutExpired:
            self._listen()
            self._stop(f"had not finished after {self.patience:g} s")
            return False
        finally:
            self._end()

    def _listen(self, at_end: bool = False) -> None:
        """Pass on the child's lines, and notice its death."""
        process, news = self._process, self._news
        if process is None or news is None:
            return
        code = process.poll()  # before reading: what it said before it died is then in the file
        try:
            for line in news:
                self._say(f"W&B {line.strip()}")
        except OSError as error:
            self._stop(f"cannot be heard any more ({error})")
            return
        if code is not None and not (at_end and code in (0, NOT_SENT)):
            self._stop(f"its process ended ({self._last_words() or f'code {code}'})")

    def _last_words(self) -> str:
        """The last line of a traceback, which says what was wrong, where the child left one."""
        with suppress(OSError):
            lines = ((self._folder or Path()) / LOG).read_text(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def _stop(self, reason: str) -> None:
        self._say(f"W&B is off: {reason}; metrics.jsonl has everything, and {self._sync} sends it")
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()  # wandb's own service watches this process and ends with it
                process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        news, self._news = self._news, None
        if news is not None:
            news.close()


def _from_environment() -> dict[str, Any]:
    """What W&B's variables ask for, by the names of our keys.

    "disabled" is no mode of the config's, which has tracking=none for that.
    """
    found = {n: os.environ.get(f"WANDB_{n.upper()}") for n in ("mode", "project", "entity", "tags")}
    wanted: dict[str, Any] = {name: text for name, text in found.items() if text}
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        wanted.setdefault("mode", "disabled")
    if "tags" in wanted:
        wanted["tags"] = wanted["tags"].split(",")
    if "mode" in wanted:
        mode = {"run": "online", "dryrun": "offline"}.get(wanted["mode"], wanted["mode"])
        if mode not in ("online", "offline", "disabled"):
            raise Refused(f"WANDB_MODE={mode}: must be online, offline or disabled")
        wanted["mode"] = mode
    return wanted


def destination(run: Path) -> dict[str, Any]:
    """`project` and `entity` of the W&B copy of a run; {} where it has none."""
    try:
        job = json.loads((run / "wandb" / JOB).read_bytes())
        return {name: job[name] for name in ("project", "entity")}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
