"""What a sweep runs: code and configs as they were when it was launched.

    outputs/sweeps/NAME/snapshot/current        the HASH in use
    outputs/sweeps/NAME/snapshot/HASH/llm       the code; `conf` and `others/N`, the configs
    outputs/sweeps/NAME/snapshot/HASH/PACKAGE   packages that `plugins` lists
    outputs/sweeps/NAME/snapshot/HASH/snapshot.json  the commit, and a checksum for each file

Editing a source or YAML file while jobs wait changes nothing in the sweep. When the line is typed
again after an edit, it is refused as a single run would be, with three answers to choose from.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from llm.config.choices import Choices
from llm.config.errors import Refused
from llm.runs.code import code_facts, counts, packages
from llm.runs.files import write_atomically, write_json
from llm.runs.identity import git_state

_SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def freeze(
    sweep: Path, choices: Choices, plugins: list[str], code_changed: str, existing: str
) -> Path:
    """Copy code and configs unless that is done; returns the snapshot that the jobs run.

    Args:
        sweep: its folder
        plugins: packages beside `llm` that configs may name
        code_changed, existing: the keys under `run`
    Raises:
        Refused: the sweep began with other files, and nothing says which to go on with
    """
    root = sweep / "snapshot"
    mark = root / "current"
    sources = _sources(choices, plugins)
    sums = {name: _checksum(file) for name, file in _files(sources)}
    name = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:10]
    before = mark.read_text().strip() if mark.exists() else None
    has_begun = (sweep / "jobs").exists()
    if has_begun and before and before != name and (root / before / "snapshot.json").exists():
        if code_changed == "frozen":
            return root / before
        changed = _changed(root / before, sums)
        if changed and code_changed == "refuse" and existing != "restart":
            raise Refused(
                f"{sweep} began with other files ({changed}); "
                "run.code_changed=frozen goes on with those that it began with, "
                "run.code_changed=accept with today's, run.existing=restart begins anew"
            )
    if not (root / name).exists():
        _copy(sources, sums, root, name)
    write_atomically(mark, name.encode() + b"\n")
    return root / name


def environment(snapshot: Path) -> dict[str, str]:
    """Variables of a process that runs the snapshot's code (with `python -P`)."""
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    # Last the current folder, which `python -m` alone would put first.
    path = os.pathsep.join([str(snapshot.resolve()), *inherited, os.getcwd()])
    return {**os.environ, "PYTHONPATH": path}


def _sources(choices: Choices, plugins: list[str]) -> dict[str, Path]:
    """Where it stands in the snapshot to where it comes from."""
    found = {place.name: place for place in packages(plugins)}
    found |= {"conf": choices.conf}
    found |= {f"others/{i:02}": folder for i, folder in enumerate(choices.others)}
    for name in ("llm_local.py", "llm_grid.py"):  # launcher and sweeper
        plugin_file = found["llm"].parent / "hydra_plugins" / name
        if plugin_file.exists():
            found[f"hydra_plugins/{name}"] = plugin_file
    return found


def _files(sources: dict[str, Path]) -> list[tuple[str, Path]]:
    found = []
    for name, source in sources.items():
        inside = [source] if source.is_file() else sorted(source.rglob("*"))
        for file in inside:
            parts = file.relative_to(source).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if file.is_file() and not hidden and file.suffix != ".pyc":
                found.append(("/".join([name, *parts]), file))
    return found


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _copy(sources: dict[str, Path], sums: dict[str, str], root: Path, name: str) -> None:
    working = root / f".{name}.{os.getpid()}.tmp"
    shutil.rmtree(working, ignore_errors=True)
    for place, source in sources.items():
        target = working / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            shutil.copy2(source, target)
        else:
            shutil.copytree(source, target, ignore=_SKIPPED)
    write_json(working / "snapshot.json", {"git": git_state(), "files": sums})
    try:
        os.replace(working, root / name)
    except OSError:  # another launch of the same line was quicker
        shutil.rmtree(working, ignore_errors=True)
        if not (root / name).exists():
            raise


def _changed(before: Path, sums: dict[str, str]) -> str:
    """The first few files that differ and can change a result, for the refusal."""
    old = json.loads((before / "snapshot.json").read_text())["files"]
    names = sorted(name for name in {*old, *sums} if old.get(name) != sums.get(name))
    same = code_facts(before / "llm") == code_facts(*packages())  # comments aside
    names = [n for n in names if not n.startswith("llm/") or (counts(n) and not same)]
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
