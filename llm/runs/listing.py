"""Runs on disk as rows: found, filtered, compared. Nothing here needs PyTorch."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from llm.config.choices import leaves
from llm.config.errors import Refused
from llm.runs.directory import is_alive
from llm.runs.files import write_json
from llm.runs.resolve import run_folders
from llm.tracking.log import MetricLog

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONDITION = re.compile(r"([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.*)")


@dataclass(frozen=True)
class Listed:
    """One run directory."""

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def at(cls, folder: Path) -> "Listed":
        """The run in `folder`; its state is "damaged" where run.json cannot be read."""
        try:
            facts = json.loads((folder / "run.json").read_bytes())
        except (OSError, ValueError):
            facts = None
        return cls(folder, facts if isinstance(facts, dict) else {"state": "damaged"})

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Dotted keys to values; none where config.yaml cannot be read."""
        try:
            text = (self.folder / "config.yaml").read_text(encoding="utf-8")
            return dict(leaves(yaml.load(text, _LOADER) or {}, ""))
        except (OSError, ValueError, yaml.YAMLError):
            return {}

    @cached_property
    def state(self) -> str:
        """As run.json says, but "killed" where it says running and no process holds the run."""
        state = str(self.facts.get("state"))
        return "killed" if state == "running" and not is_alive(self.folder) else state

    @cached_property
    def written(self) -> float:
        """When run.json was written last: of a run that is over, its end."""
        return (self.folder / "run.json").stat().st_mtime

    @cached_property
    def tags(self) -> list[str]:
        try:
            found: list[str] = json.loads((self.folder / "tags.json").read_bytes())
        except (OSError, ValueError):
            return []
        return found

    def set_tags(self, tags: list[str]) -> None:
        """In a file of their own, since run.json is its process's while it trains."""
        write_json(self.folder / "tags.json", sorted(set(tags)))

    def value(self, key: str) -> Any:
        """Of `state`, `tag`, `id`, a group (`moe`), a key of run.json or a dotted key of the
        config; a key without dots may be the last part of one. None where there is none."""
        if key in ("state", "id"):
            return getattr(self, key)
        if key in ("tag", "tags"):
            return self.tags
        if key in ("model", "moe", "data"):
            return self.choice(key)
        if key in self.facts:
            return self.facts[key]
        if key in self.config:
            return self.config[key]
        ends = [name for name in self.config if name.endswith(f".{key}")]
        return self.config[ends[0]] if len(ends) == 1 else None

    def choice(self, group: str) -> str | None:
        """The option of `model`, `moe` or `data`, which the id begins with."""
        parts = self.id.split("-")
        if len(parts) < 4:
            return None
        return {"model": parts[0], "moe": parts[1], "data": "-".join(parts[2:-1])}[group]


@dataclass(frozen=True)
class Condition:
    """`val_loss<1.2`, `moe=dense`, `tag=paper`."""

    key: str
    sign: str
    wanted: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        match = _CONDITION.fullmatch(text)
        if not match:
            raise Refused(f"{text}: is no condition; write KEY=VALUE, KEY<VALUE or KEY!=VALUE")
        return cls(match[1], match[2], match[3])

    def holds(self, run: Listed) -> bool:
        value = run.value(self.key)
        if isinstance(value, list):
            inside = self.wanted in [str(item) for item in value]
            return inside if self.sign == "=" else not inside if self.sign == "!=" else False
        wanted = yaml.load(self.wanted, _LOADER) if self.wanted else ""
        a, b = _number(value), _number(self.wanted)
        if self.sign in ("=", "!="):
            same = value == wanted or str(value) == self.wanted
            same = same or (a is not None and a == b)
            return same == (self.sign == "=")
        if a is None or b is None:
            return False
        return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[self.sign]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def find(outputs: Path) -> list[Listed]:
    """Every run under `outputs/runs`, oldest first."""
    return sorted(map(Listed.at, run_folders(outputs)), key=lambda run: (run.written, run.id))


def differences(one: Listed, other: Listed) -> list[tuple[str, Any, Any]]:
    """(what, of one, of the other) of everything that differs: config, code, data, versions."""
    found = [
        (key, one.config.get(key, "–"), other.config.get(key, "–"))
        for key in sorted(one.config.keys() | other.config.keys())
        if one.config.get(key, "–") != other.config.get(key, "–")
    ]
    names = ["code_hash", "git_commit", "git_diff_hash", "data_fingerprint", "device"]
    names += ["precision", "threads", "host", "params_total", "params_active", "flops_per_token"]
    for name in names:
        if one.facts.get(name) != other.facts.get(name):
            found.append((name, one.facts.get(name), other.facts.get(name)))
    versions = [run.facts.get("versions", {}) for run in (one, other)]
    for name in sorted(versions[0].keys() | versions[1].keys()):
        if versions[0].get(name) != versions[1].get(name):
            found.append((f"version of {name}", versions[0].get(name), versions[1].get(name)))
    return found


def curve(run: Listed) -> dict[int, float]:
    """Tokens to validation loss."""
    rows = MetricLog.read(run.folder / "metrics.jsonl", b'"val/loss"')
    return {row["tokens"]: row["val/loss"] for row in rows if row.get("val/loss") is not None}


def sweeps_of(outputs: Path) -> dict[str, list[str]]:
    """Run id to the sweeps that list it."""
    found: dict[str, list[str]] = {}
    for file in sorted((outputs / "sweeps").glob("*/sweep.json")):
        try:
            jobs = json.loads(file.read_bytes())["jobs"]
        except (OSError, ValueError, KeyError):
            continue
        for run in {job["run"] for job in jobs if job.get("run")}:
            found.setdefault(run, []).append(file.parent.name)
    return found
