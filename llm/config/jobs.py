"""The jobs of a command: one, or those of a sweep.

A sweep's typing mistakes are refused before its first job. What only appears in combination
(`top_k` above `n_experts`) is refused by the job that has it, in one line, while the others run.
"""

import copy
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from llm.config.choices import Choices
from llm.config.errors import Failed, Refused
from llm.config.overrides import Typed, parse_value
from llm.config.plain import MISTAKES, one_line
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


class Jobs:
    """Hydra's task function: validates a composed config and hands it to the command.

    A launcher may pickle it and call it in other processes, so what came of each job of a sweep
    is written to `jobs.jsonl` in the sweep's folder, one line a job, where the parent reads it.
    """

    def __init__(
        self,
        command: str,
        task: Callable[[Job], None],
        choices: Choices,
        typed: list[Typed],
        is_sweep: bool,
    ):
        self.command, self.task, self.choices, self.typed = command, task, choices, typed
        self.problem: Exception | None = None  # of a single job
        self.sweep = _sweep_name(typed) if is_sweep else None

    def overrides(self) -> list[str]:
        """Everything typed, as Hydra takes it, the user's folders, and one for the sweep."""
        given = [override.for_hydra for override in self.typed]
        if self.choices.others:
            folders = ",".join(f"'{folder}'" for folder in self.choices.others)
            given.append(f"hydra.searchpath=[{folders}]")
        if self.sweep and not any(o.key == "hydra.sweep.dir" for o in self.typed):
            given.append(f"hydra.sweep.dir=${{outputs}}/sweeps/{self.sweep}")
        return given

    def __call__(self, config: DictConfig) -> None:
        """One job. Nothing is raised into Hydra, which would print lines of its own."""
        hydra_config = HydraConfig.get()
        given: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        overrides = [override.lstrip("+") for override in given]
        words = self.typed_words(overrides)
        problem: Exception | None = None
        try:
            raw, chosen = self.composed(config, hydra_config)
            over = partial(self.over, raw, chosen, words)
            self.task(Job(self.validated(config, hydra_config, words), self.sweep, over))
        except Refused as refusal:  # a constructor's, perhaps: name its key as it was typed
            problem = Refused(refusal.message, words.get(refusal.key or "", refusal.key))
            problem.own = refusal.own
        except OSError as error:  # the disk or the network, not a bug: no traceback
            told = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            problem = Failed(told)
            problem.__cause__ = error
        except Exception as error:
            problem = error
        if self.sweep is None:
            self.problem = problem
            return
        code = 0 if problem is None else 2 if isinstance(problem, Refused) else 1
        number = hydra_config.job.num
        line = {"job": number, "overrides": overrides, "exit": code, "problem": str(problem or "")}
        if os.environ.get("RANK", "0") != "0":
            return
        with (Path(hydra_config.sweep.dir) / "jobs.jsonl").open("a", encoding="utf-8") as outcomes:
            outcomes.write(json.dumps(line) + "\n")
        if problem is not None and not isinstance(problem, Refused | Failed):
            traceback.print_exception(problem)
        if problem is not None:
            swept = [o.key for o in self.typed if len(o.values) > 1]
            its_own = " ".join(o for o in overrides if o.split("=")[0] in swept)
            print(f"{self.command}: job {number} ({its_own}): {problem}", file=sys.stderr)

    def typed_words(self, overrides: list[str]) -> dict[str, str]:
        """Dotted key to its override in the user's words, or in the job's where it is swept."""
        own = {text.partition("=")[0]: text for text in overrides}
        values = [o for o in self.typed if not o.is_group]
        return {o.key: own.get(o.key, o.text) if len(o.values) > 1 else o.text for o in values}

    def composed(self, config: DictConfig, hydra_config: Any) -> tuple[Any, dict[str, str]]:
        """The config as plain dicts, and group to option."""
        chosen = {k: v for k, v in hydra_config.runtime.choices.items() if isinstance(v, str)}
        try:
            raw: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except MISTAKES as error:
            raise Refused(one_line(error, self.choices)) from None
        return raw, chosen

    def validated(self, config: DictConfig, hydra_config: Any, words: dict[str, str]) -> Validated:
        raw, chosen = self.composed(config, hydra_config)
        return validate(raw, self.choices, chosen, words, self.plugins(raw))

    def over(
        self,
        raw: dict[str, Any],
        chosen: dict[str, str],
        words: dict[str, str],
        nodes: dict[str, Any],
    ) -> Validated:
        """`Job.starting_from`: validated anew."""
        raw, chosen = copy.deepcopy(raw), dict(chosen)
        groups = {override.key for override in self.typed if override.is_group}
        for room, node in nodes.items():
            if room in groups:
                continue
            composed, raw[room] = raw[room], copy.deepcopy(node)
            typed = [key for key in words if key.startswith(f"{room}.")]
            for group in [g for g in chosen if g.startswith(f"{room}/")]:
                option = self.choices.option(group, chosen.pop(group))
                if group in groups and option.place == room:  # model/style: some keys of the room
                    typed += [f"{room}.{key}" for key in option.node]
                elif group in groups:
                    typed.append(option.place)
            chosen.pop(room, None)
            for key in sorted(typed, key=len):  # a node before what was typed within it
                _copy(composed, raw[room], key.split(".")[1:])
        return validate(raw, self.choices, chosen, words, self.plugins(raw))

    def plugins(self, raw: dict[str, Any]) -> list[str]:
        """Packages whose code may run: from the command line alone, never from a file."""
        listed = raw.get("plugins", [])
        if not isinstance(listed, list):
            raise Refused(f"plugins={listed}: is a list; write plugins=[PACKAGE]")
        if listed and not any(override.key == "plugins" for override in self.typed):
            raise Refused("plugins: only the command line can list them, not a config file")
        return [str(package) for package in listed]

    def check_sweep(self) -> Path:
        """Refuse a sweep's mistakes before its first job; returns where its outcomes will be.

        Every value of every swept key is validated once, not every combination. Composing takes
        160 ms, so it is done once for each option of a group only; other values are put in place.
        """
        outcomes = Path()
        with initialize_config_dir(str(self.choices.conf), version_base="1.3", job_name="sweep"):
            for config, hydra_config, words in self._each_choice():
                self.validated(config, hydra_config, words)
                outcomes = Path(hydra_config.sweep.dir) / "jobs.jsonl"
        return outcomes

    def _each_choice(self) -> Iterator[tuple[DictConfig, Any, dict[str, str]]]:
        base, hydra_config = self._compose({})
        words = self.typed_words([f"{o.key}={o.values[0]}" for o in self.typed if o.values])
        yield base, hydra_config, words
        for override in self.typed:
            for value in override.values[1:]:
                if override.is_group:
                    yield *self._compose({override.key: value}), words
                else:
                    other = base.copy()
                    OmegaConf.update(other, override.key, parse_value(value), force_add=True)
                    yield other, hydra_config, {**words, override.key: f"{override.key}={value}"}

    def _compose(self, options: dict[str, str]) -> tuple[DictConfig, Any]:
        """The config with these options, and with the first value of whatever else is swept."""
        given = self.overrides()
        for i, typed in enumerate(self.typed):
            if typed.values:
                given[i] = typed.choosing(options.get(typed.key, typed.values[0]))
        config = compose(self.choices.top, given, return_hydra_config=True)
        hydra_config = config.hydra
        with open_dict(config):
            hydra_config.sweep.dir = str(hydra_config.sweep.dir)  # while `outputs` is its sibling
            del config["hydra"]
        return config, hydra_config

    def conclude(self, outcomes: Path, begin: int) -> int:
        """The exit code of a sweep whose jobs wrote `outcomes` from byte `begin` on."""
        text = outcomes.read_bytes()[begin:].decode() if outcomes.exists() else ""
        codes = [json.loads(line)["exit"] for line in text.splitlines()]
        if any(codes):
            refused, failed = codes.count(2), codes.count(1)
            counts = f"{refused} refused, {failed} failed"
            print(f"{self.command}: of {len(codes)} jobs {counts}: {outcomes}", file=sys.stderr)
        return 1 if 1 in codes else 2 if 2 in codes else 0


def _copy(source: dict[str, Any], target: dict[str, Any], path: list[str]) -> None:
    """Set in `target` what stands in `source` at `path`."""
    for part in path[:-1]:
        source, target = source[part], target.setdefault(part, {})
    target[path[-1]] = copy.deepcopy(source[path[-1]])


def _sweep_name(typed: list[Typed]) -> str:
    """The same line, in any order of its overrides, is the same sweep."""
    text = "\n".join(sorted(override.for_hydra for override in typed))
    swept = sorted(override.key.split(".")[-1] for override in typed if len(override.values) > 1)
    return "-".join([*swept[:4], hashlib.sha256(text.encode()).hexdigest()[:8]]).replace("/", "-")
