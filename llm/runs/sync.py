"""`python -m llm.runs sync`: runs that are over, sent to W&B from their logs."""

import sys
from typing import Any

from llm.config.errors import Failed
from llm.runs.arms import read_run
from llm.runs.directory import is_alive
from llm.runs.listing import Listed
from llm.tracking.wandb_mirror import Wandb, destination

#: Seconds that one run may take.
_PATIENCE = 600.0
#: The exit codes of training that W&B shows with a run; a killed one had none.
_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


def sync(runs: list[Listed], mode: str, project: str | None, entity: str | None) -> None:
    """Send each run's whole log, under its own id: W&B adds what it has not got.

    Where a run was tracked with W&B, it goes to the project of its config, unless told otherwise.
    Raises Failed where something was not sent; the others are sent all the same.
    """
    missing = [run for run in runs if not _sent(run, mode, project, entity)]
    if missing:
        raise Failed(
            f"{len(missing)} of {len(runs)} runs were not sent as asked; the same line tries again"
        )


def _sent(run: Listed, mode: str, project: str | None, entity: str | None) -> bool:
    if is_alive(run.folder):
        print(f"{run.id}: is being trained, and mirrors itself", file=sys.stderr)
        return True
    facts, config = read_run(run.folder)
    options: dict[str, Any] = {}
    tracking = config.get("tracking") or {}
    if tracking.get("_target_") == f"{Wandb.__module__}.{Wandb.__name__}":
        options = {k: tracking[k] for k in ("project", "entity", "tags", "init_timeout")}
        options |= destination(run.folder)
    options |= {k: v for k, v in (("project", project), ("entity", entity)) if v}
    options["tags"] = [*(options.get("tags") or []), *run.tags]
    tracker = Wandb(mode=mode, patience=_PATIENCE, **options)  # type: ignore[arg-type]
    sent = tracker.send(
        run.id,
        run.folder,
        config,
        facts.get("sweep"),
        _CODES.get(run.state),
        facts.get("flops_per_token"),
        lambda line: print(f"{run.id}: {line}", file=sys.stderr),
    )
    print(run.id if sent else f"{run.id}  not sent")
    return sent
