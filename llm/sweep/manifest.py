"""What a sweep remembers of itself: sweep.json lists its jobs, jobs.jsonl what came of them."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llm.config.jobs import Jobs
from llm.config.outcome import Outcome
from llm.config.overrides import as_typed
from llm.runs.files import write_json
from llm.sweep.task import Task


def write(jobs: Jobs, tasks: Iterable[Task], earlier: Sequence[dict[str, Any]]) -> None:
    """Replace sweep.json; one run may stand in several sweeps.

    Args:
        earlier: what it says of jobs that are not among `tasks`
    """
    now: list[dict[str, Any]] = [
        {
            "job": task.job.number,
            "overrides": task.job.overrides,
            "run": (task.outcome and task.outcome.run) or task.run,
            "state": task.state,
        }
        for task in tasks
    ]
    folder = Path(jobs.folder)
    folder.mkdir(parents=True, exist_ok=True)
    line = [override.text for override in jobs.line]
    snapshot = jobs.snapshot.name if jobs.snapshot else None
    about = {"sweep": jobs.sweep, "command": jobs.command, "line": line, "snapshot": snapshot}
    listed = sorted([*earlier, *now], key=lambda told: int(told["job"]))
    write_json(folder / "sweep.json", {**about, "jobs": listed})


def earlier(jobs: Jobs, first: int) -> list[dict[str, Any]]:
    """What sweep.json says of jobs before number `first`; of all where the sweep is a search,
    which makes up its jobs as it goes."""
    try:
        listed = json.loads((Path(jobs.folder) / "sweep.json").read_bytes())["jobs"]
    except (OSError, ValueError):
        return []
    return [told for told in listed if jobs.draws or told["job"] < first]


def numbers(
    jobs: Jobs, job_overrides: list[list[str]], first: int, known: Sequence[dict[str, Any]]
) -> list[int]:
    """The number of each job, from `first` on; in a search, what is `known` keeps its own."""
    if not jobs.draws:
        return list(range(first, first + len(job_overrides)))
    taken = {frozenset(told["overrides"]): int(told["job"]) for told in known}
    free = itertools.count(max(taken.values(), default=-1) + 1)
    keys = [frozenset(map(as_typed, overrides)) for overrides in job_overrides]
    return [taken.pop(key) if key in taken else next(free) for key in keys]


def pruned(jobs: Jobs) -> dict[frozenset[str], Outcome]:
    """Overrides to outcome of the jobs that were given up as hopeless, and not done since."""
    try:
        lines = (Path(jobs.folder) / "jobs.jsonl").read_text().splitlines()
    except OSError:
        return {}
    newest = {frozenset(told["overrides"]): told for told in map(json.loads, lines)}
    return {key: Outcome(**told) for key, told in newest.items() if told.get("pruned")}
