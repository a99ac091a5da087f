"""One job of a sweep as plain data, and what came of it.

A job is done in whichever process a launcher likes, by the task that the command names; what came
of it is one line of `jobs.jsonl` in the sweep's folder.
"""

import copy
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llm.config.choices import Choices
from llm.config.errors import Diverged, Failed, PeerFailed, Refused
from llm.config.validate import Validated, validate


@dataclass
class Job:
    """What a command gets: the validated config, and the sweep that it is part of."""

    validated: Validated
    sweep: str | None = None  # name of the multirun
    #: The same command, where other nodes stand below what was typed: see `starting_from`.
    over: Callable[[dict[str, Any]], Validated] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return self.validated.config

    @property
    def chosen(self) -> dict[str, str]:
        return self.validated.chosen

    def starting_from(self, nodes: dict[str, Any]) -> "Job":
        """This job with `nodes` in place of what YAML files say there; what was typed stays.

        A group that was typed (`model=gpt2`) keeps its room's node as it was composed.
        """
        assert self.over is not None
        return Job(self.over(nodes), self.sweep)


@dataclass(frozen=True)
class SweepJob:
    """A job as it travels: composed, not yet validated."""

    number: int
    overrides: list[str]
    swept: str  # those that tell it from the others, for people
    raw: dict[str, Any]
    chosen: dict[str, str]
    words: dict[str, str]  # dotted key to override as typed
    groups: list[str]  # that were typed
    plugins: list[str]
    sweep: str | None
    folder: str  # of the sweep

    def validated(self, choices: Choices) -> Validated:
        return self._checked(choices, self.raw, self.chosen)

    def as_job(self, choices: Choices) -> Job:
        """Validated, for the command."""
        return Job(self.validated(choices), self.sweep, partial(self.over, choices))

    def over(self, choices: Choices, nodes: dict[str, Any]) -> Validated:
        """`Job.starting_from`: validated anew."""
        raw, chosen = copy.deepcopy(self.raw), dict(self.chosen)
        for room, node in nodes.items():
            if room in self.groups:
                continue
            composed, raw[room] = raw[room], copy.deepcopy(node)
            typed = [key for key in self.words if key.startswith(f"{room}.")]
            for group in [g for g in chosen if g.startswith(f"{room}/")]:
                option = choices.option(group, chosen.pop(group))
                if group in self.groups and option.place == room:  # model/style: some keys of it
                    typed += [f"{room}.{key}" for key in option.node]
                elif group in self.groups:
                    typed.append(option.place)
            chosen.pop(room, None)
            for key in sorted(typed, key=len):  # a node before what was typed within it
                _copy(composed, raw[room], key.split(".")[1:])
        return self._checked(choices, raw, chosen)

    def _checked(self, choices: Choices, raw: dict[str, Any], chosen: dict[str, str]) -> Validated:
        """The dense partner where `compare` asks for one: llm.plan knows what models cost."""
        validated = validate(raw, choices, chosen, self.words, self.groups, self.plugins)
        if validated.config["compare"] is None:
            return validated
        from llm.plan.partner import partner

        try:
            return partner(validated)
        except Refused as refusal:
            refusal.key = self.words.get(refusal.key or "", refusal.key)
            raise


def _copy(source: dict[str, Any], target: dict[str, Any], path: list[str]) -> None:
    """Set in `target` what stands in `source` at `path`; delete there what does not."""
    for part in path[:-1]:
        source, target = source[part], target.setdefault(part, {})
    if path[-1] in source:
        target[path[-1]] = copy.deepcopy(source[path[-1]])
    else:
        target.pop(path[-1], None)


@dataclass(frozen=True)
class Outcome:
    """What came of a job; `exit` as errors.py has it, or minus the signal that killed it."""

    job: int
    overrides: list[str] = field(default_factory=list)
    exit: int = 0
    problem: str = ""
    run: str | None = None  # id of the run that answers it
    val_loss: float | None = None  # the last one seen, where it was pruned
    again: bool = True  # whether trying again may help
    pruned: bool = False  # stopped as hopeless; saved as if interrupted

    @property
    def objective(self) -> float | None:
        """What a search minimises. Without a loss it is infinite, so that the search keeps away
        from there; None after an accident, which says nothing of the place."""
        if self.val_loss is not None:
            return self.val_loss
        accident = self.exit and self.again and not self.pruned
        return None if accident else math.inf

    def append_to(self, folder: str | Path) -> None:
        """Add the line to `jobs.jsonl`: in one write, since several processes may.

        Of the processes that torchrun started for one job, the first does it.
        """
        if not _first_process():
            return
        line = json.dumps({k: v for k, v in asdict(self).items() if k != "again"})
        with (Path(folder) / "jobs.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")


def perform(job: SweepJob, choices: Choices, task: Callable[[Job], Any]) -> Outcome:
    """Do the job in this process. Raises nothing but interrupts."""
    try:
        folder = task(job.as_job(choices))
    except PeerFailed as end:
        return Outcome(job.number, job.overrides, end.exit_code, str(end))
    except Exception as error:
        problem = as_problem(error, job.words)
        if not isinstance(problem, Refused | Failed) and _first_process():
            traceback.print_exception(problem)
        refused = isinstance(problem, Refused)
        again = not (refused or isinstance(problem, Diverged))
        text = str(problem) or type(problem).__name__
        return Outcome(job.number, job.overrides, 2 if refused else 1, text, again=again)
    facts = run_facts(folder) if isinstance(folder, Path) else {}
    name = folder.name if isinstance(folder, Path) else None
    return Outcome(job.number, job.overrides, run=name, val_loss=facts.get("val_loss"))


def as_problem(error: Exception, words: dict[str, str]) -> Exception:
    """The error in the user's words: a key as it was typed, a refusing disk without traceback."""
    if isinstance(error, Refused):  # a constructor's, perhaps
        problem = Refused(error.message, words.get(error.key or "", error.key))
        problem.own = error.own
        return problem
    if isinstance(error, BrokenPipeError):  # the reader of our output has left, perhaps
        return error
    if isinstance(error, OSError):  # the disk or the network, not a bug
        told = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        failure = Failed(told)
        failure.__cause__ = error
        return failure
    return error


def run_facts(folder: Path) -> dict[str, Any]:
    """run.json, empty where there is none."""
    try:
        facts: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def report_problem(command: str, label: str, outcome: Outcome) -> None:
    """One line on standard error for a job that did not end well."""
    if outcome.exit and _first_process():
        print(f"{command}: job {outcome.job} ({label}): {outcome.problem}", file=sys.stderr)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
