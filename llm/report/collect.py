"""Runs as a report needs them: what they were told, what they spent, what they reached."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.config.errors import Refused
from llm.runs.arms import Entry, arms, content, job_words, read_run, recorded, texts
from llm.runs.chosen import chosen
from llm.runs.resolve import resolve_run
from llm.tracking.log import MetricLog, parse


@dataclass
class Point:
    """One evaluation."""

    tokens: int
    seconds: float | None
    loss: float
    bpb: float | None


@dataclass
class Result:
    """One run. `recorded` is the part of its config that can change a result."""

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    recorded: dict[str, Any]
    points: list[Point]
    last: dict[str, Any]  # the last row with an evaluation
    #: Swept overrides of the jobs that it answers, where from a sweep.
    jobs: list[dict[str, str]] = field(default_factory=list)
    label: str = ""  # of its arm
    pruned: bool = False  # as hopeless, or another seed of its arm was
    repeats: "Result | None" = None  # the same run in another folder

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def finished(self) -> bool:
        return self.facts.get("state") == "finished" and bool(self.points)

    @property
    def loss(self) -> float:
        return self.points[-1].loss

    @property
    def flops(self) -> float:
        return float(self.facts["tokens"] * self.facts["flops_per_token"])

    @property
    def is_dense(self) -> bool:
        return "n_experts" not in self.config["moe"]

    @property
    def compare(self) -> str | None:
        """What a dense partner has equal with a model with experts; None for other runs."""
        if not self.is_dense or any(job.get("moe") == "dense" for job in self.jobs):
            return None
        typed = [job["compare"] for job in self.jobs if "compare" in job]
        by = typed[0] if typed else self.config.get("compare")
        return None if by in (None, "null") else str(by)

    @cached_property
    def entry(self) -> Entry:
        tokens = self.facts.get("tokens")
        return Entry(
            content(self.recorded, self.facts),
            texts(self.facts),
            chosen(self.id, self.facts, self.config),
            tokens,
            tokens * self.facts["flops_per_token"] if tokens else None,
            self.facts.get("params_active"),
            self.facts.get("params_total"),
            self.compare,
            frozenset(job_words(f"{k}={v}" for k, v in job.items()) for job in self.jobs),
        )

    def compares_with(self, other: "Result") -> bool:
        """Whether their losses answer one question: on one text, by code with one account of it."""
        version = "result_version"
        same = self.entry.content[version] == other.entry.content[version]
        return same and self.entry.reads_like(other.entry)


@dataclass
class Collection:
    """What a report is about."""

    results: list[Result]
    problems: list[tuple[str, str]]  # what and why: jobs without a run, damaged files
    pruned: list[tuple[str, str]]  # jobs that their sweep gave up, and why
    named: list[str]  # keys that the sweep varies; empty where several runs were listed
    repeats: list[tuple[str, str]]  # runs that are there twice, and where they are counted
    title: str
    folder: Path  # where the report goes unless told otherwise


def collect(paths: list[Path]) -> Collection:
    """Runs, sweeps and folders of either, each run once.

    Raises Refused where there is nothing to report on.
    """
    jobs: dict[Path, list[dict[str, str]]] = {}
    problems: list[tuple[str, str]] = []
    pruned: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.is_dir():
            raise Refused(f"{path}: is no run, no sweep and no folder of them")
        if (path / "jobs.jsonl").exists():
            _of_sweep(path, jobs, problems, pruned)
            continue
        inside = sorted(path.glob("*/run.json")) or sorted(path.glob("runs/*/run.json"))
        is_run = (path / "run.json").exists()
        for folder in [path] if is_run else [file.parent for file in inside]:
            jobs.setdefault(folder.resolve(), [])
    results = []
    for folder, answered in jobs.items():
        try:
            results.append(_read(folder, answered))
        except (OSError, ValueError, KeyError) as error:
            problems.append((folder.name, f"cannot be read: {error}"))
    if not results and not problems:
        raise Refused(f"{', '.join(map(str, paths))}: there are no runs yet")
    keys = sorted({key for answered in jobs.values() for job in answered for key in job} - {"seed"})
    only = paths[0]
    home = only / "report" if len(paths) == 1 else only.parent / "report"
    title = only.resolve().name if len(paths) == 1 else f"{len(results)} runs"
    repeats = _in_arms(results)
    return Collection(results, problems, _pruned(results, pruned), keys, repeats, title, home)


def folder_named(word: str) -> Path:
    """A folder to report on: a path, or a run's name as all commands take it."""
    path = Path(word).expanduser()
    return path if word.strip() and path.is_dir() else resolve_run(word)


def _in_arms(results: list[Result]) -> list[tuple[str, str]]:
    """Label the results by their arms; mark and tell those that are one run in two folders."""
    labels = {
        entry.arm: arm.label for arm in arms([r.entry for r in results]) for entry in arm.entries
    }
    seen: dict[tuple[str, int], Result] = {}
    for result in results:
        result.label = labels[result.entry.arm]
        if result.finished:
            first = seen.setdefault((result.entry.arm, result.seed), result)
            result.repeats = None if first is result else first
    return [
        (f"{r.id} ({r.label})", f"{r.folder} is counted in {r.repeats.folder}")
        for r in results
        if r.repeats is not None
    ]


def _of_sweep(
    path: Path,
    answered: dict[Path, list[dict[str, str]]],
    problems: list[tuple[str, str]],
    pruned: dict[str, dict[str, Any]],
) -> None:
    """The newest outcome of each job; runs under way are in the manifest only."""
    jobs: dict[frozenset[str], dict[str, Any]] = {}
    if (path / "sweep.json").exists():
        for job in json.loads((path / "sweep.json").read_bytes())["jobs"]:
            jobs[frozenset(job["overrides"])] = {**job, "exit": 0, "problem": ""}
    file = path / "jobs.jsonl"
    for told in parse(file.read_bytes(), file, keys=["job"]):
        key = frozenset(told["overrides"])  # a search numbers its jobs anew at each start
        known = jobs.get(key, {})
        jobs[key] = {**told, "run": told.get("run") or known.get("run")}
    pairs = {key: dict(o.split("=", 1) for o in job["overrides"]) for key, job in jobs.items()}
    every = {key for values in pairs.values() for key in values}
    swept = {key for key in every if len({values.get(key) for values in pairs.values()}) > 1}
    runs = path.parent.parent / "runs"
    for key, job in jobs.items():
        number = job["job"]
        values = {k: v for k, v in pairs[key].items() if k in swept}
        words = " ".join(f"{k}={v}" for k, v in values.items())
        if job.get("pruned"):
            about = {"words": _words(values), "folder": (runs / str(job["run"])).resolve()}
            pruned[f"job {number} ({words})"] = job | about
        if job["exit"] and job["exit"] not in (130, 143):  # interrupted is not failed
            problems.append((f"job {number} ({words})", job["problem"]))
        run = job.get("run")
        if run and (runs / run / "run.json").exists():
            answered.setdefault((runs / run).resolve(), []).append(values)


def _words(job: dict[str, str]) -> frozenset[str]:
    """What the jobs of an arm have in common, whether they have a run or not."""
    return frozenset(f"{key}={value}" for key, value in job.items() if key != "seed")


def _pruned(results: list[Result], jobs: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Marks the runs of arms that were given up; what was given up, and why.

    `jobs`: name to outcome of those that their sweeps have pruned. One that was trained to its end
    since, alone or without the rule, is a run like others.
    """
    done = {result.folder for result in results if result.finished}
    jobs = {name: job for name, job in jobs.items() if job["folder"] not in done}
    told = [(name, str(job["problem"])) for name, job in jobs.items()]
    words, runs = ([job[key] for job in jobs.values()] for key in ("words", "folder"))
    hopeless = set()
    for result in results:
        own = result.facts.get("state") == "pruned"
        if own or any(_words(job) in words for job in result.jobs):
            hopeless.add(result.entry.arm)
        if own and result.folder not in runs:  # listed without its sweep
            told.append((f"{result.id} ({result.label})", str(result.facts.get("reason"))))
    for result in results:
        result.pruned = result.entry.arm in hopeless
    return told


def _read(folder: Path, jobs: list[dict[str, str]]) -> Result:
    facts, config = read_run(folder)
    seconds = _seconds(folder)
    points, last = [], {}
    for row in MetricLog.read(folder / "metrics.jsonl", b'"val/loss"'):
        if row.get("val/loss") is None:
            continue
        points.append(
            Point(row["tokens"], seconds.get(row["step"]), row["val/loss"], row.get("val/bpb"))
        )
        last = row
    return Result(folder, facts, config, recorded(config), points, last, jobs)


def _seconds(folder: Path) -> dict[int, float]:
    """Step to seconds since the start; steps taken twice count as they were taken last."""
    rows = MetricLog.read(folder / "perf.jsonl")
    return {row["step"]: row["perf/seconds"] for row in rows if "perf/seconds" in row}
