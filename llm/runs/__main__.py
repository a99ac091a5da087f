"""`python -m llm.runs`: the runs on disk.

  python -m llm.runs [CONDITION ...] [--sort=KEY]   list: moe=dense val_loss<1.2 state=failed tag=x
  python -m llm.runs diff A B                       what differs: config, code, data, curves
  python -m llm.runs tag RUN WORD ...               add tags; -WORD takes one away
  python -m llm.runs rm RUN ... [--yes]             delete
  python -m llm.runs sync [RUN ...] [--offline]     send to W&B from metrics.jsonl, whole, again
  python -m llm.runs dashboard [SWEEP]              a W&B workspace for these runs

RUN is a run's directory, its id or the end of it. `--outputs=FOLDER` stands for outputs/.
`--project=NAME` and `--entity=NAME` say where in W&B; `--to=FILE.json` writes the workspace there.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from llm.config.command import exit_code
from llm.config.errors import Refused
from llm.config.suggest import did_you_mean
from llm.config.terminal import shown
from llm.runs.conditions import Condition, whole_key
from llm.runs.directory import is_alive
from llm.runs.listing import Listed, curve, differences, find, sweeps_of
from llm.runs.resolve import resolve_run
from llm.runs.table import aligned, listing

_FLAGS = ("--sort", "--outputs", "--yes", "--offline", "--project", "--entity", "--to", "--help")

_SHOWN = ("id", "state", "tag", "tags", "model", "moe", "data", "val_loss", "excess", "tokens")


def run(arguments: list[str]) -> int:
    """Do one of the commands; the exit code."""
    typed = [a for a in arguments if a.startswith("--")]
    flags = {name: value for name, _, value in (flag.partition("=") for flag in typed)}
    words = [a for a in arguments if not a.startswith("--")]
    unknown = [name for name in flags if name not in _FLAGS]
    if unknown:
        raise Refused(f"{unknown[0]}: there is no such flag{did_you_mean(unknown[0], _FLAGS)}")
    if "--help" in flags or words[:1] == ["help"]:
        print(__doc__)
        return 0
    outputs = Path(flags.get("--outputs", "outputs"))
    runs = find(outputs)

    def named(*names: str) -> list[Listed]:
        """Each run once."""
        return list(map(Listed.at, dict.fromkeys(resolve_run(name, outputs) for name in names)))

    command, rest = (words[0], words[1:]) if words and words[0].isalpha() else ("list", words)
    if command == "list":
        _list(outputs, runs, rest, flags.get("--sort"))
    elif command == "diff" and len(rest) == 2:
        _diff(*(Listed.at(resolve_run(name, outputs)) for name in rest))
    elif command == "tag" and len(rest) > 1:
        _tag(named(rest[0])[0], rest[1:])
    elif command == "rm" and rest:
        _remove(named(*rest), "--yes" in flags)
    elif command == "sync":
        from llm.runs.sync import sync

        chosen = named(*rest) or runs
        mode = "offline" if "--offline" in flags else "online"
        sync(chosen, mode, flags.get("--project"), flags.get("--entity"))
    elif command == "dashboard" and len(rest) < 2:
        from llm.runs.dashboard import dashboard

        sweep, chosen = _of_sweep(rest[0], outputs, runs) if rest else (None, runs)
        where = [flags.get(name) for name in ("--project", "--entity", "--to")]
        if where[2] == "":
            raise Refused("--to: write --to=FILE.json, or --to=- to print it")
        dashboard(chosen, sweep, *where)
    else:
        commands = ("list", "diff", "tag", "rm", "sync", "dashboard")
        hint = did_you_mean(command, commands) if command not in commands else "; see --help"
        raise Refused(f"{' '.join(words)}: is no command of llm.runs{hint}")
    return 0


def _list(outputs: Path, runs: list[Listed], words: list[str], sort: str | None) -> None:
    conditions = [Condition.parse(text, runs) for text in words]
    chosen = [run for run in runs if all(condition.holds(run) for condition in conditions)]
    if sort is not None:
        key = whole_key(sort.lstrip("-"), runs, f"--sort={sort}")
        known = [run for run in chosen if run.values.get(key) is not None]
        known.sort(key=lambda run: _sortable(run.values[key]), reverse=sort.startswith("-"))
        chosen = known + [run for run in chosen if run.values.get(key) is None]
    asked = [condition.key for condition in conditions if condition.key not in _SHOWN]
    if chosen:
        _show(listing(chosen, asked, sweeps_of(outputs)))
    print(f"{len(chosen)} of {len(runs)} runs", file=sys.stderr)


def _diff(one: Listed, other: Listed) -> None:
    rows = [["", one.id, other.id]]
    rows += [[key, str(a), str(b)] for key, a, b in differences(one, other)]
    if len(rows) == 1:
        rows.append(["nothing differs", "", ""])
    for name in ("state", "val_loss", "val_bpb", "excess", "tokens", "seconds"):
        rows.append([name, str(one.values.get(name)), str(other.values.get(name))])
    _show("\n".join(aligned(rows)))
    a, b = curve(one), curve(other)
    common = sorted(a.keys() & b.keys())
    if common:
        picked = (
            common
            if len(common) <= 12
            else [common[i * (len(common) - 1) // 11] for i in range(12)]
        )
        table = [["tokens", one.id[-10:], other.id[-10:], "difference"]]
        table += [[f"{t:,}", f"{a[t]:.4f}", f"{b[t]:.4f}", f"{b[t] - a[t]:+.4f}"] for t in picked]
        print("\n".join(["\nvalidation loss", *aligned(table, set(table[0]))]))
        same = all(a[t] == b[t] for t in common)
        print("the curves are equal to the last digit" if same else "")


def _show(table: str) -> None:
    """Print a table; tags, paths and options in it are anybody's text."""
    print(shown(table, sys.stdout))


def _tag(run: Listed, words: list[str]) -> None:
    gone = {word.removeprefix("-") for word in words if word.startswith("-")}
    new = [word for word in words if not word.startswith("-")]
    run.set_tags([tag for tag in [*run.tags, *new] if tag not in gone])


def _remove(runs: list[Listed], sure: bool) -> None:
    for run in runs:
        if is_alive(run.folder):
            raise Refused(f"{run.id}: is being trained; stop it first")
        if run.folder.is_symlink():
            raise Refused(f"{run.folder} is a link to {run.folder.resolve()}; name that")
        if not (run.folder / "config.yaml").is_file():
            raise Refused(f"{run.folder} has no config.yaml: it may be no run; delete it by hand")
    for run in runs:
        listed = sweeps_of(run.folder.parent.parent).get(run.id)
        print(f"{run.folder} ({run.state})" + (f", in {', '.join(listed)}" if listed else ""))
    if not sure:
        if not sys.stdin.isatty():
            raise Refused("rm: deletes for ever; add --yes")
        if input("delete for ever? [y/N] ").strip().lower() != "y":
            return
    for run in runs:
        shutil.rmtree(run.folder)


def _of_sweep(typed: str, outputs: Path, runs: list[Listed]) -> tuple[str, list[Listed]]:
    """A sweep's name, and the runs that it lists; a path has to be that of one in `outputs`."""
    path, sweeps = Path(os.path.abspath(typed)), outputs / "sweeps"
    if not typed.strip() or ("/" in typed and path.parent != Path(os.path.abspath(sweeps))):
        raise Refused(f"{typed or 'the empty name'} is no sweep in {sweeps}; see --outputs")
    listed = sweeps_of(outputs)
    names = sorted({name for found in listed.values() for name in found})
    if path.name not in names:
        raise Refused(f"{typed}: there is no such sweep{did_you_mean(path.name, names)}")
    return path.name, [run for run in runs if path.name in listed.get(run.id, [])]


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))


if __name__ == "__main__":
    sys.exit(exit_code("llm.runs", lambda: run(sys.argv[1:])))
