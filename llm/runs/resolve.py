"""The one way to name a run: in every command, in `llm.load_run` and in `model.init_from`.

    outputs/runs/ID                     the run in this directory, wherever it lies
    …/ID/best, …/ID/checkpoints         its best weights, its newest weights
    …/ID/checkpoints/step-00000200      the weights of this checkpoint
    ID, 327030fd41, 1d                  the run in outputs/runs with this id, or with an id that
                                        ends so and is the only one that does

A name with a slash is a path and means nothing but what lies there. Nothing here needs PyTorch.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llm.config.environment import invocation
from llm.config.errors import Refused
from llm.config.suggest import nearest

OUTPUTS = Path("outputs")
#: The folders of a run that hold weights.
_WEIGHTS = ("best", "checkpoints")
#: Names of runs in a message, at most.
_MOST = 6


class RunPath(NamedTuple):
    """What a name means."""

    folder: Path  # of the run, absolute
    weights: Path | None = None  # `best`, `checkpoints` or one checkpoint in it; None: the run


def resolve(name: "str | Path | RunPath", outputs: Path = OUTPUTS) -> RunPath:
    """The run, or the weights of a run, that `name` means.

    Args:
        outputs: ids and endings of ids name runs in `outputs/runs`
    Raises:
        Refused: nothing has this name, several runs have it, or it is empty
    """
    if isinstance(name, RunPath):
        return name
    text = str(name)
    if not text.strip():
        raise Refused("the name of the run is empty; write its directory or its id")
    here = run_at(Path(text))
    runs = {folder.name: folder for folder in run_folders(outputs)}
    if _is_path(text):
        if here is None:
            raise Refused(
                f"{text} is no run directory and no checkpoint of one{_did_you_mean(text, runs)}"
            )
        return here
    named = [text] if text in runs else [run for run in runs if run.endswith(text)]
    found = [RunPath(Path(os.path.abspath(runs[run]))) for run in named]
    if here is not None and not any(_same(here, other) for other in found):
        found.insert(0, here)
    if len(found) == 1:
        return found[0]
    if not found:
        hint = _did_you_mean(text, runs)
        raise Refused(f"there is no run {text} in {outputs / 'runs'}{hint}")
    shown = ", ".join(str(run.weights or run.folder) for run in found[:_MOST])
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    raise Refused(f"{text} is the name of {len(found)} runs: {shown}{more}; write its path")


def resolve_run(name: str, outputs: Path = OUTPUTS) -> Path:
    """The directory of the run that `name` means; Refused where it means some of its weights."""
    found = resolve(name, outputs)
    if found.weights is not None:
        raise Refused(f"{name} names weights; name the run itself: {found.folder}")
    return found.folder


def run_at(path: Path) -> RunPath | None:
    """The run, or the weights of one, at exactly this path; None where there is neither."""
    path = Path(os.path.abspath(path.expanduser()))
    if (path / "run.json").is_file():
        return RunPath(path)
    if path.name in _WEIGHTS and (path.parent / "run.json").is_file():
        return RunPath(path.parent, path)
    folder = path.parent.parent
    if (path / "checksums.json").is_file() and (folder / "run.json").is_file():
        return RunPath(folder, path)
    return None


def other_folder(name: str) -> Path | None:
    """The directory `name`, absolute, where it is there and no part of a run: another's model."""
    path = Path(os.path.abspath(Path(name).expanduser()))
    return path if name.strip() and path.is_dir() and run_at(path) is None else None


def run_folders(outputs: Path) -> list[Path]:
    """The directories of all runs in `outputs/runs`, by name."""
    files = sorted((outputs / "runs").glob("[!.]*/run.json"))
    return [file.parent for file in files]


def newest_finished(outputs: Path) -> Path:
    """The directory of the run that was finished last; Refused where there is none.

    By the time of its run.json, which is written for the last time when a run ends. One that
    cannot be read is passed over.
    """
    finished: list[tuple[float, str, Path]] = []
    unfinished = 0
    for folder in run_folders(outputs):
        file = folder / "run.json"
        try:
            state = json.loads(file.read_text(encoding="utf-8"))["state"]
        except (OSError, ValueError, LookupError, TypeError):
            print(f"{file} cannot be read; passing it over", file=sys.stderr)
            continue
        if state == "finished":
            finished.append((file.stat().st_mtime, folder.name, folder))
        else:
            unfinished += 1
    if finished:
        return max(finished)[2]
    also = f" ({unfinished} unfinished; name one to open it)" if unfinished else ""
    line = invocation("llm.train")
    raise Refused(f"there is no finished run in {outputs / 'runs'}{also}; {line} makes one")


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or text in (".", "..") or text.startswith("~")


def _same(one: RunPath, other: RunPath) -> bool:
    return one.weights == other.weights and os.path.samefile(one.folder, other.folder)


def _did_you_mean(text: str, runs: Iterable[str]) -> str:
    """`; did you mean ID?` of the run that has the name in its id, or nearly."""
    parts = [p for p in Path(text).parts if p not in _WEIGHTS and not p.startswith("step-")]
    word = parts[-1] if parts else text
    holding = [run for run in runs if word in run]
    by_name = {**{run.rpartition("-")[2]: run for run in runs}, **{run: run for run in runs}}
    guess = holding[0] if len(holding) == 1 else by_name.get(nearest(word, by_name) or "")
    return f"; did you mean {guess}?" if guess else ""
