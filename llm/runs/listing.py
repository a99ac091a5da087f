"""Runs on disk: found, read and compared. Nothing here needs PyTorch."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.config.choices import leaves
from llm.config.outcome import run_facts
from llm.runs.arms import read_run
from llm.runs.chosen import chosen
from llm.runs.directory import is_alive
from llm.runs.files import write_json
from llm.runs.resolve import run_folders
from llm.tracking.log import MetricLog


@dataclass(frozen=True)
class Listed:
    """One run directory."""

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def at(cls, folder: Path) -> "Listed":
        """The run in `folder`; its state is "damaged" where run.json cannot be read."""
        return cls(folder, run_facts(folder) or {"state": "damaged"})

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def _nodes(self) -> dict[str, Any]:
        """The config; empty where config.yaml cannot be read."""
        try:
            return read_run(self.folder)[1]
        except (OSError, ValueError):
            return {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Dotted keys to values."""
        return dict(leaves(self._nodes, ""))

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

    @cached_property
    def chosen(self) -> dict[str, str]:
        """Group to option."""
        nodes = {k: v for k, v in self._nodes.items() if isinstance(v, dict)}
        return chosen(self.id, self.facts, nodes)

    @cached_property
    def values(self) -> dict[str, Any]:
        """All that conditions and columns can ask for: what the config says by dotted keys, the
        keys of run.json, each group's option, `state`, `tag` and `id`."""
        own = {"id": self.id, "state": self.state, "written": self.written, "tag": self.tags}
        return {**self.config, **self.facts, **self.chosen, **own, "tags": self.tags}


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
    names = ["result_version", "code_hash", "git_commit", "git_diff_hash", "data_fingerprint"]
    names += ["text_fingerprint", "init_from", "device"]
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
