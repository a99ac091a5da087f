"""A run's directory: claimed by one process, saying its state at any moment.

run.json        state, identity, results (atomic)
config.yaml     the resolved config
metrics.jsonl   the truth about the run; perf.jsonl, what the clock says
vocabulary.json the tokenizer
checkpoints/    the newest two; best/, the weights with the lowest validation loss (its newest;
                before it, those that were it at these checkpoints)
curve.png       the loss curve
"""

import os
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from llm.config.errors import Failed, Refused
from llm.runs.code import changes, mixed_code
from llm.runs.files import write_json

#: A run that was pruned is interrupted for another's sake: its sweep had better ones.
State = Literal["running", "finished", "failed", "interrupted", "pruned"]


class Run:
    """One run of one identity; this process alone writes it while it holds the claim.

    Without a lock another process of the job holds the claim, and writes.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], lock: FileLock | None):
        self.folder, self.facts, self._lock = folder, facts, lock

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        return self.folder / "best"

    @property
    def state(self) -> str:
        return self.facts["state"]

    def update(self, **facts: Any) -> None:
        """Write `facts` into run.json, atomically, beside those that are there."""
        self.facts.update(facts)
        if self._lock is not None:
            write_json(self.folder / "run.json", self.facts)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def claim(
    root: Path,
    run_id: str,
    config: dict[str, Any],
    facts: dict[str, Any],
    existing: str,
    code_changed: str,
    wait: bool = False,
) -> Run:
    """Take hold of the run of this identity, new, unfinished or finished.

    The claim is a file lock, which the system lets go when the process dies, however it dies.

    Args:
        root: `outputs/runs`
        facts: what run.json says of a new run; its code is compared with an existing one's
        existing: `resume`, or `restart` to move an existing run aside
        code_changed: `accept` to go on with an unfinished run that other code began, anything else
            refuses; a finished one answers, with a note
        wait: for the process that holds it, and then answer from its result
    Raises:
        Refused: another process holds it (and `wait` is false), or other code began it
    """
    (root / ".locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_file(root, run_id))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        held = folder_of(root, run_id)
        if not wait:
            raise Refused(f"{held} is being trained by another process; wait for it") from None
        print(f"waiting for {held}, which another process trains", file=sys.stderr)
        lock.acquire(poll_interval=0.25)
        existing = "resume"  # what the other one has just made is not moved aside
    folder = folder_of(root, run_id)
    known = read_facts(folder)
    if known is not None and existing == "restart":
        _move_aside(folder)
        known = None
    if known is None:
        folder.mkdir(exist_ok=True)
        run = Run(folder, dict(facts), lock)
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        run.update(state="running")
        return run
    changed = changes(known, facts)
    if not changed:
        return Run(folder, known, lock)
    told = f"{folder} was made by other code ({changed})"
    if known["state"] == "finished":
        print(f"note: {told}", file=sys.stderr)
        return Run(folder, known, lock)
    if code_changed != "accept":
        lock.release()
        raise Refused(
            f"{told}; run.code_changed=accept goes on with it, run.existing=restart begins anew"
        )
    return Run(folder, {**known, **mixed_code(known, facts)}, lock)


def folder_of(root: Path, run_id: str) -> Path:
    """Where the run of this identity lies, or will.

    The last part of an id is its hash and says which run it is. The words before it are those of
    the line that came first: `model=tiny` and another model with every value of it are one run.
    """
    folder = root / run_id
    if folder.exists():
        return folder
    return next(root.glob(f"*-{_hash_of(run_id)}"), folder)


def _hash_of(run_id: str) -> str:
    return run_id.rpartition("-")[2]


def _lock_file(root: Path, run_id: str) -> Path:
    return root / ".locks" / _hash_of(run_id)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What run.json says, None where there is no run. A dead process's run is not running."""
    import json

    file = folder / "run.json"
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise Failed(f"{file} is damaged; move {folder} away to begin anew") from None


def mark_pruned(folder: Path, reason: str) -> None:
    """Let run.json say that its sweep stopped this run as hopeless, unless it is finished or
    somebody trains it. It goes on like an interrupted one where it is trained again."""
    lock = FileLock(_lock_file(folder.parent, folder.name))
    with suppress(Timeout, OSError), lock.acquire(timeout=0):
        facts = read_facts(folder)
        if facts is not None and facts["state"] != "finished":
            Run(folder, facts, lock).update(state="pruned", reason=reason)


def is_alive(folder: Path) -> bool:
    """Whether some process holds the claim on this run."""
    path = _lock_file(folder.parent, folder.name)
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _move_aside(folder: Path) -> None:
    """Nothing is deleted: the old run stays under outputs/runs/.replaced."""
    aside = folder.parent / ".replaced"
    aside.mkdir(exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    os.replace(folder, aside / f"{folder.name}-{stamp}-{time.monotonic_ns() % 1000}")
