"""`hydra/sweeper=grid`, the default for -m: every job of a grid, or of lines of such.

Hydra's own sweeper composes each job once more to see whether it can be composed (160 ms each);
`llm.config.jobs` has checked every value by then.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


@dataclass
class GridSweeperConf:
    """The keys of `hydra.sweeper`, written in a study (`llm.config.study`).

    params: key or group to its values, as they would be typed: `1,2,3`
    lines: jobs that are no grid: each line with all of `params`
    """

    _target_: str = "hydra_plugins.llm_grid.GridSweeper"
    params: dict[str, str] | None = None
    lines: list[str] = field(default_factory=list)


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="llm"
)


class GridSweeper(Sweeper):
    """Hands all jobs to the launcher at once."""

    def __init__(self, params: Any, lines: Any):
        self.params = params

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.jobs, self.folder = task_function, Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from llm.config.errors import Refused

        if self.params:  # those of a study are among the jobs' own
            raise Refused("hydra.sweeper.params: type the values themselves: KEY=A,B")
        self.folder.mkdir(parents=True, exist_ok=True)
        returns = self.launcher.launch(list(self.jobs.frozen().grid()), initial_job_idx=0)
        for job in returns:
            _ = job.return_value  # raises what the job raised
        return [returns]
