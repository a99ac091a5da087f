"""The files of a corpus below a path, and those that are passed over."""

import glob
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKED = (".gz", ".bz2", ".xz", ".zst")


def kind_of(file: Path) -> str:
    """The suffix that says how a file is read: ".jsonl" of a.jsonl.gz, "" where there is none."""
    name = file.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def places(path: str) -> list[Path]:
    """The files and folders that a path or a glob names."""
    named = Path(path).expanduser()
    if named.exists():
        return [named]
    if "**" not in named.parts:
        return [Path(found) for found in sorted(glob.glob(str(named)))]
    # The module would follow links that lead in a circle, at each turn along all of them.
    at = named.parts.index("**")
    roots = places(str(Path(*named.parts[:at]))) if at else [Path()]
    every = ((root, file) for root in roots for file in sorted(_below(root, set(), Counter())))
    return [file for root, file in every if _fits(file.relative_to(root).parts, named.parts[at:])]


def _fits(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Whether patterns, of which `**` stands for any number of folders, fit or lead above."""
    if not patterns:
        return True
    if patterns[0] == "**":
        return any(_fits(parts[i:], patterns[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


class Found(NamedTuple):
    """What `search` came across."""

    files: list[Path]  # in the order of their names
    passed_over: dict[str, int]  # by kind or reason
    passed_over_bytes: int


def search(paths: Iterable[Path], kinds: Iterable[str]) -> Found:
    """The files of these kinds among `paths` and below the folders among them.

    Links are followed, and each file is taken once, however many lead to it. What is hidden by a
    leading dot is passed over, unless it is one of `paths`.
    """
    passed: Counter[str] = Counter()
    folders: set[str] = set()
    every = {file: None for path in paths for file in sorted(_below(path, folders, passed))}
    files: dict[str, Path] = {}
    n_bytes = 0
    real_folder = cache(os.path.realpath)
    for file in every:
        real = (
            os.path.realpath(file)
            if file.is_symlink()
            else f"{real_folder(file.parent)}/{file.name}"
        )
        if not file.is_file():
            passed["broken link" if file.is_symlink() else "no file"] += 1
        elif kind_of(file) not in kinds:
            passed[kind_of(file) or "no suffix"] += 1
            n_bytes += file.stat().st_size
        elif files.setdefault(real, file) is not file:
            passed["linked again"] += 1
    return Found(list(files.values()), dict(passed), n_bytes)


def _below(path: Path, visited: set[str], passed: Counter[str]) -> Iterator[Path]:
    """`path` itself, or every file below it; folders behind links come last, and none twice."""
    if not path.is_dir():
        yield path
        return
    waiting = deque([path])
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) in visited:
            passed["linked again"] += folder.is_symlink()
            continue
        visited.add(real)
        for name in os.listdir(folder):
            inside = folder / name
            if name.startswith("."):
                passed["hidden"] += 1
            elif not inside.is_dir():
                yield inside
            elif inside.is_symlink():
                waiting.append(inside)
            else:
                waiting.appendleft(inside)
