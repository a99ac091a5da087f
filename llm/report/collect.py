"""Runs as a report needs them: what they were told, what they spent, what they reached."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm.config.errors import Refused
from llm.config.schema import dataclass_of, locate, schema_of
from llm.runs.fairness import Entry, flat
from llm.runs.identity import canonical, current
from llm.tracking.log import parse

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    named: dict[str, str] = field(default_factory=dict)  # swept overrides, where from a sweep
    label: str = ""  # of its arm
    pruned: bool = False  # as hopeless, or another seed of its arm was

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
        if not self.is_dense or self.named.get("moe") == "dense":
            return None
        by = self.named.get("compare") or self.config.get("compare")
        return None if by in (None, "null") else str(by)

    def entry(self) -> Entry:
        tokens = self.facts.get("tokens")
        flops = tokens * self.facts["flops_per_token"] if tokens else None
        return Entry(
            self.label,
            self.recorded,
            self.seed,
            tokens,
            flops,
            self.facts.get("params_active"),
            self.facts.get("params_total"),
            self.compare,
        )


@dataclass
class Collection:
    """What a report is about."""

    results: list[Result]
    problems: list[tuple[str, str]]  # what and why: jobs without a run, damaged files
    pruned: list[tuple[str, str]]  # jobs that their sweep gave up, and why
    named: list[str]  # keys that the sweep varies; empty where several runs were listed
    title: str
    folder: Path  # where the report goes unless told otherwise


def collect(paths: list[Path]) -> Collection:
    """Runs, sweeps and folders of either, each run once.

    Raises Refused where there is nothing to report on.
    """
    folders: dict[str, Path] = {}
    named: dict[str, dict[str, str]] = {}
    problems: list[tuple[str, str]] = []
    pruned: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.is_dir():
            raise Refused(f"{path}: is no run, no sweep and no folder of them")
        if (path / "jobs.jsonl").exists():
            _of_sweep(path, folders, named, problems, pruned)
        elif (path / "run.json").exists():
            folders[path.name] = path
        else:
            inside = sorted(path.glob("*/run.json")) or sorted(path.glob("runs/*/run.json"))
            folders.update({file.parent.name: file.parent for file in inside})
    results = []
    for name, folder in folders.items():
        try:
            results.append(_read(folder, named.get(name, {})))
        except (OSError, ValueError, KeyError) as error:
            problems.append((name, f"cannot be read: {error}"))
    if not results and not problems:
        raise Refused(f"{', '.join(map(str, paths))}: there are no runs yet")
    keys = sorted({key for values in named.values() for key in values} - {"seed"})
    only = paths[0]
    is_sweep = len(paths) == 1 and (only / "jobs.jsonl").exists()
    home = only / "report" if is_sweep or len(paths) == 1 else only.parent / "report"
    title = only.resolve().name if len(paths) == 1 else f"{len(results)} runs"
    _label(results)
    return Collection(results, problems, _pruned(results, pruned), keys, title, home)


def _of_sweep(
    path: Path,
    folders: dict[str, Path],
    named: dict[str, dict[str, str]],
    problems: list[tuple[str, str]],
    pruned: dict[str, dict[str, Any]],
) -> None:
    """The newest outcome of each job; runs under way are in the manifest only."""
    jobs: dict[frozenset[str], dict[str, Any]] = {}
    if (path / "sweep.json").exists():
        for job in json.loads((path / "sweep.json").read_bytes())["jobs"]:
            jobs[frozenset(job["overrides"])] = {**job, "exit": 0, "problem": ""}
    for line in (path / "jobs.jsonl").read_text().splitlines():
        told = json.loads(line)
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
            pruned[f"job {number} ({words})"] = {**job, "arm": _arm(values)}
        if job["exit"] and job["exit"] not in (130, 143):  # interrupted is not failed
            problems.append((f"job {number} ({words})", job["problem"]))
        run = job.get("run")
        if run and (runs / run / "run.json").exists():
            folders[run] = runs / run
            named.setdefault(run, values)


def _arm(named: dict[str, str]) -> frozenset[str]:
    """What the seeds of an arm have in common."""
    return frozenset(f"{key}={value}" for key, value in named.items() if key != "seed")


def _pruned(results: list[Result], jobs: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Marks the runs of arms that were given up; what was given up, and why.

    `jobs`: name to outcome of those that their sweeps have pruned. One that was trained to its end
    since, alone or without the rule, is a run like others.
    """
    done = {result.id for result in results if result.finished}
    jobs = {name: job for name, job in jobs.items() if job["run"] not in done}
    told = [(name, str(job["problem"])) for name, job in jobs.items()]
    arms, runs = [job["arm"] for job in jobs.values()], {job["run"] for job in jobs.values()}
    for result in results:
        own = result.facts.get("state") == "pruned"
        result.pruned = own or (bool(result.named) and _arm(result.named) in arms)
        if own and result.id not in runs:  # listed without its sweep
            told.append((f"{result.id} ({result.label})", str(result.facts.get("reason"))))
    return told


def _read(folder: Path, named: dict[str, str]) -> Result:
    facts = json.loads((folder / "run.json").read_bytes())
    config = current(yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), _LOADER))
    recorded = _recorded(config)
    recorded["hardware"] = {k: facts.get(k) for k in ("device", "precision")}
    seconds = _seconds(folder)
    points, last = [], {}
    path = folder / "metrics.jsonl"
    text = path.read_bytes() if path.exists() else b""
    # Only rows with an evaluation are read: a hundredth of the log.
    whole = text[: text.rfind(b"\n") + 1]
    rows = b"".join(line + b"\n" for line in whole.split(b"\n") if b'"val/loss"' in line)
    for row in parse(rows, path):
        if row["val/loss"] is None:
            continue
        points.append(
            Point(row["tokens"], seconds.get(row["step"]), row["val/loss"], row.get("val/bpb"))
        )
        last = row
    return Result(folder, facts, config, recorded, points, last, named)


def _seconds(folder: Path) -> dict[int, float]:
    """Step to seconds since the start; steps taken twice count as they were taken last."""
    path = folder / "perf.jsonl"
    if not path.exists():
        return {}
    rows = parse(path.read_bytes(), path)
    return {row["step"]: row["perf/seconds"] for row in rows if "perf/seconds" in row}


def _recorded(config: dict[str, Any]) -> dict[str, Any]:
    from llm.config.root import Experiment

    return canonical(_part(config, Experiment))


def _part(node: dict[str, Any], target: Any) -> dict[str, Any]:
    """What of a node can change a result; all of it where its class is not at hand."""
    schema = schema_of(target)
    found = {"_target_": node["_target_"]} if "_target_" in node else {}
    for key, value in node.items():
        parameter = schema.keys.get(key)
        if parameter is None or not parameter.recorded:
            continue
        if isinstance(value, dict):
            section = dataclass_of(parameter.annotation)
            try:
                inner = section or locate(value.get("_target_"))
                found[key] = _part(value, inner)
            except Refused:  # a plugin's
                found[key] = value
        else:
            found[key] = value
    return found


def _label(results: list[Result]) -> None:
    """Names of arms: what was swept, or else the choices and keys that differ."""
    if results and all(result.named for result in results):
        for result in results:
            words = [f"{_leaf(k)}={v}" for k, v in result.named.items() if k != "seed"]
            if result.is_dense and not result.compare:  # keys of experts have no effect
                words = [word for word in words if word.split("=")[0] not in _EXPERT_KEYS]
            words = [word for word in words if word != "compare=null"]
            result.label = " ".join(words) or "everything at its default"
        return
    stems = {result.id: result.id.rsplit("-", 1)[0] for result in results}
    several = len(set(stems.values())) > 1
    shown = {stem: stem for stem in stems.values()}
    if several:
        parts = {stem: stem.split("-") for stem in shown}
        if len({len(words) for words in parts.values()}) == 1:  # only what tells them apart
            columns = zip(*parts.values(), strict=True)
            varies = [len(set(column)) > 1 for column in columns]
            for stem, words in parts.items():
                shown[stem] = "-".join(w for w, v in zip(words, varies, strict=True) if v)
    rows = {result.id: flat(result.recorded) for result in results}
    differing: set[str] = set()
    for stem in set(stems.values()):
        same = [rows[name] for name, other in stems.items() if other == stem]
        keys = {key for row in same for key in row} - {"seed"}
        differing |= {k for k in keys if len({str(row.get(k)) for row in same}) > 1}
    for result in results:
        row = rows[result.id]
        words = [f"{_leaf(k)}={row[k]}" for k in sorted(differing) if k in row]
        words += [f"compare={result.compare}"] if result.compare else []
        result.label = " ".join([shown[stems[result.id]]] * several + words) or stems[result.id]


_EXPERT_KEYS = (
    *("n_experts", "top_k", "balance_loss", "z_loss", "capacity_factor", "granularity"),
    "compare",
)


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]
