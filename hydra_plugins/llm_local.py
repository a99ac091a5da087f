"""Hydra finds launchers in this namespace package: `hydra/launcher=local`, the default for -m."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class Rule(Enum):
    """Which runs are hopeless: see `llm.sweep.prune`."""

    median = "median"


@dataclass
class LocalLauncherConf:
    """The keys of `hydra.launcher`.

    jobs: processes at a time; null for what cores, memory and GPUs allow
    retries: how often a job that was killed, or failed by the machine's fault, is tried again
    backoff: seconds before the first of these, doubled for each further one
    fail_fast: the first job that fails ends the sweep; the others are saved and go on later
    prune: the rule that stops hopeless runs; null for none
    prune_after: evaluations that a run makes before it is judged
    """

    _target_: str = "hydra_plugins.llm_local.LocalLauncher"
    jobs: int | None = None
    retries: int = 1
    backoff: float = 5.0
    fail_fast: bool = False
    prune: Rule | None = None
    prune_after: int = 3


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalLauncherConf, provider="llm"
)


class LocalLauncher(Launcher):
    """A process for each job on this machine; `llm.sweep.launch` has the work."""

    def __init__(
        self,
        jobs: int | None,
        retries: int,
        backoff: float,
        fail_fast: bool,
        prune: Rule | None,
        prune_after: int,
    ):
        self.jobs, self.retries, self.backoff, self.fail_fast = jobs, retries, backoff, fail_fast
        self.prune, self.prune_after = prune, prune_after

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from llm.config.errors import Refused
        from llm.sweep.prune import Pruner

        if self.prune_after < 1:
            raise Refused(f"hydra.launcher.prune_after={self.prune_after}: is at least 1")
        self.pruner = Pruner(self.prune_after) if self.prune is not None else None
        self.task_function = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from llm.sweep.launch import launch

        return launch(
            self.task_function,
            [list(overrides) for overrides in job_overrides],
            initial_job_idx,
            self.jobs,
            self.retries,
            self.backoff,
            self.fail_fast,
            self.pruner,
        )
