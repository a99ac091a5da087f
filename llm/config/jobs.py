"""The jobs of a command: one, or those of a sweep.

A sweep's typing mistakes are refused before its first job. What only appears in combination
(`top_k` above `n_experts`) is refused by the job that has it, in one line, while the others run.
"""

import hashlib
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from llm.config import space
from llm.config.choices import Choices
from llm.config.compose import Composer, plain
from llm.config.environment import invocation
from llm.config.errors import Refused
from llm.config.hydra_private import BASIC_LAUNCHER, GRID_SWEEPERS
from llm.config.outcome import Job, Outcome, SweepJob, as_problem, perform, report_problem
from llm.config.overrides import Typed, as_typed
from llm.config.plain import MISTAKES, one_line
from llm.config.study import Sweep, chosen_study, with_study

__all__ = ["Job", "Jobs"]


class Jobs:
    """Hydra's task function: validates a composed config and hands it to the command.

    A launcher may pickle it and call it in other processes, so what came of each job of a sweep
    is written to `jobs.jsonl` in the sweep's folder, one line a job, where the parent reads it.
    In another process the job is done from the snapshot that the sweep was launched with.
    """

    def __init__(
        self,
        command: str,
        task: Callable[[Job], Any],
        choices: Choices,
        typed: list[Typed],
        is_sweep: bool,
    ):
        self.command, self.task, self.choices, self.line = command, task, choices, typed
        # What a sweep's study sweeps is as good as typed.
        study = with_study(typed, choices) if is_sweep else Sweep([], [], False)
        self.typed, self.n_grid = [*study.grid, *typed], len(study.grid)
        self.lines, self.has_params = study.lines, study.has_params
        self.problem: Exception | None = None  # of a single job
        self.sweep = _sweep_name(typed, chosen_study(typed, choices)) if is_sweep else None
        self.folder = ""  # of the sweep
        self.snapshot: Path | None = None
        self.sweeper: dict[str, Any] = {}  # the node of `hydra.sweeper`
        self.launcher = ""  # the class that it names
        self.restarts = False
        self.parent = os.getpid()
        self.codes: list[int] = []  # of jobs that a launcher did itself

    def overrides(self) -> list[str]:
        """Everything typed, as Hydra takes it, the user's folders, and one for the sweep."""
        return [*(override.for_hydra for override in self.typed), *self.hydra_overrides()]

    def shown_overrides(self) -> list[str]:
        """The same for `--cfg`, which shows the dense partner where `compare` is typed."""
        if self.sweep is not None or not any(o.key == "compare" for o in self.typed):
            return self.overrides()
        composer = self.composer()
        with composer.opened():
            made = self.job(0, next(self.each_value()), composer)
        if isinstance(made, Outcome):  # Hydra will say it
            return self.overrides()
        validated = made.validated(self.choices)
        if validated.config["compare"] is None:
            return self.overrides()
        model = validated.config["model"]
        keys = [key for key in ("d_ff", "moe_every", "dense_first") if key in model]
        typed = [o for o in self.typed if o.key.split(".")[0] != "moe"]
        partner = ["moe=dense", *(f"++model.{key}={model[key]}" for key in keys)]
        return [*(o.for_hydra for o in typed), *partner, *self.hydra_overrides()]

    def hydra_overrides(self) -> list[str]:
        # A study's values are typed by now; Hydra's sweepers would add them once more.
        given = ["hydra.sweeper.params=null"] if self.has_params else []
        if self.choices.others:
            folders = ",".join(f"'{folder}'" for folder in self.choices.others)
            given.append(f"hydra.searchpath=[{folders}]")
        if self.sweep and not any(o.key == "hydra.sweep.dir" for o in self.typed):
            given.append(f"hydra.sweep.dir=${{outputs}}/sweeps/{self.sweep}")
        return given

    def composer(self) -> Composer:
        of_hydra = [o.for_hydra for o in self.typed if not o.values]
        return Composer(self.choices, [*of_hydra, *self.hydra_overrides()])

    def __call__(self, config: DictConfig) -> float | None:
        """One job. Nothing is raised into Hydra, which would print lines of its own."""
        hydra_config = HydraConfig.get()
        # As typed: `${optimizer.eps_}` is refused in one line where the config is resolved.
        given: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        if self.sweep is None:
            self.single(config, hydra_config, given)
            return None
        number = hydra_config.job.num
        elsewhere = self.snapshot is not None and os.getpid() != self.parent
        job = (
            self.frozen_job(number, given)
            if elsewhere
            else self.composed(number, given, config, hydra_config)
        )
        if isinstance(job, Outcome):
            outcome = job
        elif elsewhere:
            from llm.sweep.process import do_in_a_process

            outcome = do_in_a_process(self, job)
        else:
            outcome = perform(job, self.choices, self.task)
        outcome.append_to(self.folder)
        report_problem(self.command, self.label(outcome.overrides), outcome)
        return outcome.objective

    def single(self, config: DictConfig, hydra_config: Any, given: list[str]) -> None:
        words = self.typed_words([as_typed(text) for text in given])
        try:
            described = self.composed(0, given, config, hydra_config)
            if isinstance(described, Outcome):
                raise Refused(described.problem)
            self.task(described.as_job(self.choices))
        except Exception as error:
            self.problem = as_problem(error, words)

    def job(self, number: int, given: Sequence[str], composer: Composer) -> SweepJob | Outcome:
        """The job that a sweeper wants, composed the quick way; an outcome where it cannot be.

        Args:
            given: its overrides, as Hydra takes them
        """
        return self._described(number, given, lambda: composer.job(self._in_order(given)))

    def frozen_job(self, number: int, given: Sequence[str]) -> SweepJob | Outcome:
        """The job as the snapshot's configs have it, whatever a launcher composed by now."""
        frozen = self.frozen()
        composer = frozen.composer()
        with composer.opened():
            return frozen.job(number, given, composer)

    def composed(
        self, number: int, given: Sequence[str], config: DictConfig, hydra_config: Any
    ) -> SweepJob | Outcome:
        """The job that Hydra has composed."""
        chosen = hydra_config.runtime.choices
        return self._described(number, given, lambda: (plain(config), chosen))

    def _in_order(self, given: Sequence[str]) -> Sequence[str]:
        """A study's grid, its line, what was typed: where two of them meet the later one wins. A
        search's sweeper has them in an order of its own."""
        if self.sweep is None:
            return given
        grid, typed = self.typed[: self.n_grid], self.typed[self.n_grid :]
        order = [o.for_hydra.partition("=")[0] for o in [*grid, *chain(*self.lines), *typed]]
        return sorted(given, key=lambda text: order.index(text.partition("=")[0]))

    def _described(
        self,
        number: int,
        given: Sequence[str],
        compose: Callable[[], tuple[dict[str, Any], Mapping[str, Any]]],
    ) -> SweepJob | Outcome:
        overrides = [as_typed(text) for text in given]
        try:
            raw, chosen = compose()
            plugins = self.plugins(raw)
        except MISTAKES as error:
            return Outcome(number, overrides, 2, one_line(error, self.choices), again=False)
        except Refused as refusal:
            return Outcome(number, overrides, 2, str(refusal), again=False)
        return SweepJob(
            number,
            overrides,
            self.label(overrides),
            raw,
            {k: v for k, v in chosen.items() if isinstance(v, str)},
            self.typed_words(overrides),
            self.typed_groups(overrides),
            plugins,
            self.sweep,
            self.folder,
        )

    @property
    def swept(self) -> list[str]:
        """Keys and groups that differ between jobs."""
        keys = [o.key for o in self.typed if len(o.values) > 1]
        return list(dict.fromkeys([*keys, *(o.key for line in self.lines for o in line)]))

    def label(self, overrides: list[str]) -> str:
        """What tells this job from the others of its sweep."""
        return shlex.join(o for o in overrides if o.split("=")[0] in self.swept)

    def typed_groups(self, overrides: list[str]) -> list[str]:
        own = {text.partition("=")[0] for text in overrides}
        of_line = [o.key for o in chain(*self.lines) if o.is_group and o.key in own]
        return [*(o.key for o in self.typed if o.is_group), *dict.fromkeys(of_line)]

    def typed_words(self, overrides: list[str]) -> dict[str, str]:
        """Dotted key to its override in the user's words, or in the job's where it is swept."""
        own = {text.partition("=")[0]: text for text in overrides}
        values = [o for o in [*self.typed, *chain(*self.lines)] if not o.is_group]
        known = {o.key: own[o.key] for o in values if o.key in self.swept and o.key in own}
        return {o.key: o.text for o in self.typed if not o.is_group} | known

    def plugins(self, raw: dict[str, Any]) -> list[str]:
        """Packages whose code may run: from the command line alone, never from a file."""
        listed = raw.get("plugins", [])
        if not isinstance(listed, list):
            raise Refused(f"plugins={listed}: is a list; write plugins=[PACKAGE]")
        if listed and not any(override.key == "plugins" for override in self.line):
            raise Refused("plugins: only the command line can list them, not a config file")
        return [str(package) for package in listed]

    @contextmanager
    def composing(self) -> Iterator[Composer]:
        """An open composer of this sweep's jobs, which knows its sweeper."""
        composer = self.composer()
        with composer.opened():
            hydra = composer.hydra(next(self.each_value()))
            sweeper: Any = OmegaConf.to_container(hydra.sweeper, enum_to_str=True)
            self.sweeper, self.folder = sweeper, str(hydra.sweep.dir)
            self.launcher = str(hydra.launcher._target_)
            for override in [*self.typed, *chain(*self.lines)]:
                if override.is_interval and not self.draws:
                    remedy = "add hydra/sweeper=optuna to search it"
                    raise Refused(f"{override.text}: a grid has no intervals; {remedy}")
            if self.draws and self.lines:
                raise Refused("hydra/sweeper: a search draws from one space, not from lines")
            yield composer

    @property
    def draws(self) -> bool:
        """Whether it is a search, whose sweeper chooses each job by what came of others."""
        return self.sweeper.get("_target_", GRID_SWEEPERS[0]) not in GRID_SWEEPERS

    def check_sweep(self) -> Path:
        """Refuse a sweep's mistakes before its first job; returns where its outcomes will be.

        Every value of every swept key is validated once, not every combination; of an interval,
        its ends. Then the code and the configs are copied for the jobs, unless these run in this
        process.
        """
        with self.composing() as composer:
            for given in self.each_value():
                first = self._validated(given, composer)
            if self.draws:
                self._refuse_search()
                self.typed = [self._as_drawn(override, composer) for override in self.typed]
        rules = first.raw["run"]
        self.restarts = rules["existing"] == "restart"
        if self.launcher != BASIC_LAUNCHER:
            from llm.sweep.snapshot import freeze

            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise Refused(
                    "the processes of torchrun do each job together: add hydra/launcher=basic"
                )
            self.snapshot = freeze(
                Path(self.folder),
                self.choices,
                first.plugins,
                rules["code_changed"],
                rules["existing"],
            )
        return Path(self.folder) / "jobs.jsonl"

    def _validated(self, given: list[str], composer: Composer) -> SweepJob:
        made = self.job(0, given, composer)
        if isinstance(made, Outcome):
            raise Refused(made.problem)
        made.validated(self.choices)
        return made

    def _refuse_search(self) -> None:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise Refused("each process of torchrun would search on its own; start it without")
        if not any(override.sweep is not None for override in self.typed):
            raise Refused("a search needs something to draw: KEY=A,B or KEY=interval(LOW,HIGH)")

    def _as_drawn(self, override: Typed, composer: Composer) -> Typed:
        """The override as the search's sweeper has to read it."""
        if override.sweep is None:
            return override
        fractions = True
        doubtful = space.fraction_within(override.sweep) if override.is_interval else None
        if doubtful is not None:
            first = next(self.each_value())
            try:
                self._validated([*first, override.choosing(str(doubtful))], composer)
            except Refused:
                fractions = False
        name = override.for_hydra.partition("=")[0]
        drawn = space.as_optuna_draws(name, override.sweep, override.values, fractions)
        return replace(override, for_hydra=drawn)

    @contextmanager
    def under_way(self) -> Iterator[list[str]]:
        """While the sweep runs; what Hydra has to be told beside `overrides`."""
        if "study_name" not in self.sweeper:
            yield []
            return
        from llm.sweep.search import study

        assert self.sweep is not None
        with study(Path(self.folder), self.sweep, self.sweeper, self.restarts) as told:
            yield told

    def frozen(self) -> "Jobs":
        """These jobs, composed from the snapshot's configs."""
        if self.snapshot is None:
            return self
        snapshot = self.snapshot.resolve()
        others = sorted((snapshot / "others").glob("*"))
        choices = Choices(snapshot / "conf", others, self.choices.top)
        frozen = Jobs(self.command, self.task, choices, self.line, True)
        frozen.folder, frozen.snapshot = self.folder, self.snapshot
        frozen.sweep = self.sweep
        return frozen

    def each_value(self) -> Iterator[list[str]]:
        """The overrides of some jobs, as Hydra takes them: the first value of everything, and each
        other value beside these; so for each line. Of an interval, its ends."""
        for line in self.lines or [[]]:
            typed = self._beside(line)
            first = [o.choosing(o.values[0]) for o in typed]
            yield first
            for i, override in enumerate(typed):
                for value in override.values[1:]:
                    yield [*first[:i], override.choosing(value), *first[i + 1 :]]

    def grid(self) -> Iterator[list[str]]:
        """The overrides of every job, as Hydra takes them: line by line, each in the order of
        Hydra's sweeper."""
        for line in self.lines or [[]]:
            every = [[o.choosing(value) for value in o.values] for o in self._beside(line)]
            yield from map(list, itertools.product(*every))

    def _beside(self, line: list[Typed]) -> list[Typed]:
        """Everything of a line and beside it. In a sweep, as in Hydra's sweepers, what is given
        twice has the place of the first and the values of the last."""
        given = [o for o in [*line, *self.typed] if o.values]
        if self.sweep is None:
            return given
        return list({o.for_hydra.partition("=")[0]: o for o in given}.values())

    def conclude(self, outcomes: Path, begin: int) -> int:
        """The exit code of a sweep whose jobs wrote `outcomes` from byte `begin` on. The last line
        on standard output is the sweep's folder, unless its jobs ran and spoke in this process."""
        if self.snapshot is not None:
            print(self.folder)
        codes = self.codes
        if not codes and outcomes.exists():
            lines = outcomes.read_bytes()[begin:].decode().splitlines()
            codes = [json.loads(line)["exit"] for line in lines]
        refused = codes.count(2)
        failed = sum(1 for code in codes if code not in (0, 2, 130, 143))
        if failed or refused:
            counts = f"{refused} refused, {failed} failed"
            print(f"{self.command}: of {len(codes)} jobs {counts}: {outcomes}", file=sys.stderr)
        if 0 in codes and self.command == "llm.train":
            print(f"what was learnt: {invocation('llm.report', self.folder)}", file=sys.stderr)
        return 1 if failed else 2 if refused else 0


def _sweep_name(typed: list[Typed], study: str | None) -> str:
    """The same line, in any order of its overrides, is the same sweep.

    How it is launched and what to do with runs that exist already do not name it.
    """
    named = [o for o in typed if not o.key.startswith(("run.", "hydra.", "hydra/"))]
    text = "\n".join(sorted(override.for_hydra for override in named))
    swept = sorted(override.key.split(".")[-1] for override in named if len(override.values) > 1)
    stem = [study, *swept[:4]] if study else swept[:4]
    return "-".join([*stem, hashlib.sha256(text.encode()).hexdigest()[:8]]).replace("/", "-")
