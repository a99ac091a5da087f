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
from llm.config.suggest import did_you_mean
from llm.runs.directory import is_alive
from llm.runs.files import write_json

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONDITION = re.compile(r"([\w./]+)\s*(<=|>=|!=|=|<|>)\s*(.*)")


@dataclass(frozen=True)
class Listed:
    """One run directory."""

    folder: Path
    facts: dict[str, Any]

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Dotted keys to values."""
        text = (self.folder / "config.yaml").read_text(encoding="utf-8")
        return dict(leaves(yaml.load(text, _LOADER) or {}, ""))

    @cached_property
    def state(self) -> str:
        """As run.json says, but "killed" where it says running and no process holds the run."""
        state = str(self.facts.get("state"))
        return "killed" if state == "running" and not is_alive(self.folder) else state

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
    """Every run under `outputs/runs`, oldest first; one with a damaged run.json is left out."""
    found = []
    for file in (outputs / "runs").glob("*/run.json"):
        try:
            found.append((file.stat().st_mtime, Listed(file.parent, json.loads(file.read_bytes()))))
        except (OSError, ValueError):
            continue
    return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].id))]


def pick(runs: list[Listed], word: str) -> Listed:
    """The run of this id, its end, or its path; Refused where there is none or several."""
    word = word.rstrip("/").rsplit("/", 1)[-1]
    exact = [run for run in runs if run.id == word]
    found = exact or [run for run in runs if run.id.endswith(word) or run.id.startswith(word)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise Refused(f"{word}: there is no such run{did_you_mean(word, [r.id for r in runs])}")
    raise Refused(f"{word}: is the name of {len(found)} runs: {', '.join(r.id for r in found[:4])}")


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
    file = run.folder / "metrics.jsonl"
    text = file.read_bytes() if file.exists() else b""
    rows = [json.loads(line) for line in text.split(b"\n")[:-1] if b'"val/loss"' in line]
    return {row["tokens"]: row["val/loss"] for row in rows if row["val/loss"] is not None}


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
