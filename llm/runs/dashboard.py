"""`python -m llm.runs dashboard`: a W&B workspace with the panels of our report, as code.

What the panels show is named here once; the package `wandb-workspaces` knows how W&B writes it
down. The workspace is the same for the same runs, so that it can be kept beside a study.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from llm.config.environment import installation
from llm.config.errors import Failed, Refused
from llm.runs.listing import Listed
from llm.tracking.log import parse
from llm.tracking.wandb_mirror import Wandb, destination

#: Bytes at the end of a log that are looked at for the names in it: the last evaluation's at least.
_TAIL = 1 << 18

#: Section: panels (title, metrics or a pattern of them, x axis, whether that is logarithmic).
#: A section or panel is left out where none of the runs at hand has anything that it shows.
_PANELS: dict[str, list[tuple[str, str | list[str], str, bool]]] = {
    "Loss": [
        ("validation loss against tokens", ["val/loss"], "tokens", True),
        ("validation loss against active FLOPs", ["val/loss"], "flops", True),
        ("validation loss against seconds", ["val/loss"], "perf/seconds", True),
        ("excess over the floor", ["val/excess"], "tokens", True),
        ("bits a byte", ["val/bpb"], "tokens", True),
        ("training loss", ["train/loss"], "tokens", True),
    ],
    "Excess by skill": [
        ("what is left to learn, nats a token", "val/excess/.+", "tokens", False),
    ],
    "Balance": [
        ("busiest expert over the mean", ["moe/max_over_mean"], "tokens", False),
        ("share of choices dropped", ["moe/dropped"], "tokens", False),
        ("experts without a token", ["moe/dead", "moe/val/unused"], "tokens", False),
        ("layers in alarm", ["moe/alarm"], "tokens", False),
        ("entropy of the router", ["moe/entropy"], "tokens", False),
        ("experts in use, the worst layer", ["moe/val/effective_experts_worst"], "tokens", False),
    ],
    "Gradients": [
        ("gradient norm", ["train/grad_norm"], "tokens", False),
        ("gradient norm by role", "grad_norm/.+", "tokens", False),
        ("update over weight by role", "update_ratio/.+", "tokens", False),
        ("learning rate", ["train/lr"], "tokens", False),
        ("steps left out", ["train/skipped", "train/overflowed"], "tokens", False),
    ],
    "Throughput": [
        ("tokens a second", ["perf/tokens_per_second"], "tokens", False),
        ("share of the device's peak", ["perf/mfu"], "tokens", False),
        ("memory", ["perf/memory_peak"], "tokens", False),
        (
            "seconds of a step",
            [f"perf/{x}" for x in ("data", "forward", "backward", "optimizer", "evaluation")],
            "tokens",
            False,
        ),
    ],
}


def dashboard(
    runs: list[Listed], sweep: str | None, project: str | None, entity: str | None, to: str | None
) -> None:
    """Write the workspace of `runs`, or save it with W&B.

    Args:
        runs: that are at hand; they say which panels have something to show, and the project
        sweep: the workspace shows the runs of this sweep; those that it shares with another too
        project, entity: in W&B, where `runs` do not say it
        to: a file, `-` for standard output, None to save it with W&B
    Raises:
        Refused: a package, or the login, is missing; Failed: W&B does not take it
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401 (a second)
    except ImportError:
        raise Refused(
            f"dashboard: needs the package wandb-workspaces; {installation('dashboards')} brings it"
        ) from None
    told = Wandb(
        project=project or _tracked(runs, "project"), entity=entity or _tracked(runs, "entity")
    )
    project, entity = told.project, told.entity
    if to is not None:
        text = json.dumps(_plain(workspace(runs, sweep, project, entity or "")), indent=1) + "\n"
        if to == "-":
            sys.stdout.write(text)
        else:
            Path(to).write_text(text, encoding="utf-8")
            print(to)
        return
    import wandb

    try:
        entity = entity or wandb.Api().default_entity
        made = workspace(runs, sweep, project, str(entity)).save()
    except wandb.errors.UsageError:
        raise Refused(
            "dashboard: nobody is logged in with W&B; run `wandb login`, "
            "or write the workspace with --to=FILE.json (--to=- prints it)"
        ) from None
    except Exception as error:  # of any kind: the network's, the library's, the server's refusals
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Failed(f"W&B did not take the dashboard ({reason})") from None
    print(made.url)


def workspace(runs: list[Listed], sweep: str | None, project: str, entity: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace` with what `runs` have to show."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    names = {name for run in runs for name in _names(run)}
    sections = []
    for title, panels in _PANELS.items():
        lines = []
        for label, what, x, log_x in panels:
            prefix = what.removesuffix(".+") if isinstance(what, str) else None
            if prefix is not None:
                shown = not names or any(name.startswith(prefix) for name in names)
                given: dict[str, Any] = {"metric_regex": what}
            else:
                shown = not names or not names.isdisjoint(what)
                given = {"y": list(what)}
            if shown:
                log = {"log_x": True} if log_x else {}
                lines.append(reports.LinePlot(title=label, x=x, **given, **log))
        if lines:
            sections.append(workspaces.Section(name=title, panels=lines, is_open=True))
    chosen = workspaces.RunsetSettings(filters=_filter(runs, sweep)) if sweep else None
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=sweep or "My Simple LLM",
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="tokens", max_runs=50),
        **({} if chosen is None else {"runset_settings": chosen}),
    )


def _plain(made: Any) -> dict[str, Any]:
    """The workspace as W&B keeps it; panels are named by their place, and not by chance."""
    view: dict[str, Any] = made._to_model().model_dump(by_alias=True, exclude_none=True)
    for i, section in enumerate(view["spec"]["section"]["panelBankConfig"]["sections"]):
        for j, panel in enumerate(section["panels"]):
            panel["__id__"] = f"section{i}panel{j}"
    return view


def _filter(runs: list[Listed], sweep: str) -> str:
    """The runs that the sweep trained are its group; what it found done is in another's."""
    shared = sorted(run.id for run in runs if run.facts.get("sweep") != sweep)
    group = f"Metric('Group') == {sweep!r}"
    return f"{group} or Metric('ID') in {shared!r}" if shared else group


def _tracked(runs: list[Listed], key: str) -> str | None:
    """Where the newest of the runs that W&B was told of were sent."""
    target = f"{Wandb.__module__}.{Wandb.__name__}"
    for run in reversed(runs):
        if run.config.get("tracking._target_") == target:
            where = destination(run.folder).get(key) or run.config.get(f"tracking.{key}")
            if where:
                return str(where)
    return None


def _names(run: Listed) -> set[str]:
    """Metrics in the last rows of a run's logs."""
    names: set[str] = set()
    for name in ("metrics.jsonl", "perf.jsonl"):
        path = run.folder / name
        if not path.exists():
            continue
        with open(path, "rb") as file:
            start = max(file.seek(0, os.SEEK_END) - _TAIL, 0)
            file.seek(start)
            text = file.read()
        first = text.find(b"\n") + 1 if start else 0
        names |= {key for row in parse(text[first:], path) for key in row}
    return names
