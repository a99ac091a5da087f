"""The entry point: Hydra's command line, with its refusals in one line and our exit codes.

Hydra ends with text of its own and exit code 1 before any user code runs; here its exceptions are
caught, shortened, and told apart from failures. Nothing in this file imports torch: `--help`,
`--cfg` and shell completion answer without it.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from llm.config import hydra_private
from llm.config import overrides as override_reading
from llm.config.choices import Choices
from llm.config.command import exit_code
from llm.config.completion import as_program, install_script, without_shared
from llm.config.errors import Refused
from llm.config.help import help_text
from llm.config.jobs import Job, Jobs
from llm.config.plain import MISTAKES, one_line
from llm.config.suggest import nearest

__all__ = ["Job", "in_process", "main"]


def main(command: str, task: Callable[[Job], Any]) -> None:
    """Run `task` for the config that `sys.argv` describes; never returns.

    Args:
        command: name of the command, for messages ("llm.train")
        task: called once a job, in the same process unless a launcher plugin says otherwise
    """
    sys.exit(exit_code(command, lambda: _run(command, task, read_flags(sys.argv[1:]))))


def in_process(command: str, task: Callable[[Job], Any], overrides: Sequence[str]) -> None:
    """`main` for Python: run `task` for one job, and let its exceptions through.

    Args:
        overrides: settings as they are typed, key=value
    """
    if isinstance(overrides, str):
        raise Refused(f"{command} takes a list of settings: [{overrides!r}]")
    flags = [text for text in overrides if text.startswith("-")]
    if flags:
        raise Refused(f"{flags[0]}: {command} takes settings alone, written key=value")
    arguments = sys.argv
    sys.argv = [command, *overrides]  # which Hydra reads
    try:
        with hydra_private.set_aside():
            _run(command, task, read_flags(list(overrides)))
    finally:
        sys.argv = arguments


def choices_of(flags: argparse.Namespace) -> Choices:
    """What can be chosen with these flags; Refused for a file that Hydra would pass over."""
    folders = [flags.config_dir, *override_reading.search_path(flags.overrides)]
    choices = Choices(
        folder_of(flags.config_path) if flags.config_path else None,
        [folder_of(folder) for folder in folders if folder],
        flags.config_name or "train",
    )
    _ = choices.files
    return choices


def _run(command: str, task: Callable[[Job], Any], flags: argparse.Namespace) -> int:
    if flags.version:
        print(f"My Simple LLM {version('my-simple-llm')}, Hydra {hydra.__version__}")
        return 0
    choices = choices_of(flags)
    if flags.help:
        print(help_text(command, choices))
        return 0
    if flags.shell_completion and flags.overrides == ["install=bash"]:
        print(install_script(command), end="")
        return 0
    if flags.shell_completion or flags.hydra_help or flags.info:
        said = io.StringIO()
        try:
            if "COMP_LINE" in os.environ:
                os.environ["COMP_LINE"] = as_program(os.environ["COMP_LINE"], command)
            with contextlib.redirect_stdout(said):
                _hydra(flags, choices, flags.overrides, lambda config: None)
        except (*MISTAKES, ValueError, KeyError) as error:  # KeyError: the shell sets COMP_LINE
            raise Refused(one_line(error, choices)) from error
        finally:  # Hydra may end by SystemExit
            print(without_shared(said.getvalue()), end="")
        return 0
    typed = override_reading.read(flags.overrides, choices, flags.multirun)
    lists_plugins = any(override.key == "plugins" for override in typed)
    if flags.cfg and not lists_plugins:  # whose YAML need not list every key
        override_reading.check_listed(typed, choices)
    return _run_jobs(flags, choices, Jobs(command, task, choices, typed, flags.multirun))


def _run_jobs(flags: argparse.Namespace, choices: Choices, jobs: Jobs) -> int:
    try:
        outcomes = jobs.check_sweep() if flags.multirun else None
        begin = outcomes.stat().st_size if outcomes and outcomes.exists() else 0
        given = jobs.shown_overrides() if flags.cfg else jobs.overrides()
        with jobs.under_way() as told:
            _hydra(flags, choices, [*given, *told], jobs)
    except MISTAKES as error:
        raise Refused(one_line(error, choices)) from error
    except SystemExit as stop:  # --package names nothing, as Hydra has said
        if flags.cfg and stop.code:
            return 2
        raise
    if jobs.problem is not None:
        raise jobs.problem
    return jobs.conclude(outcomes, begin) if outcomes else 0


def read_flags(arguments: list[str]) -> argparse.Namespace:
    """Hydra's flags, also between overrides; Refused where argparse would print its usage."""
    parser = hydra_private.flags_parser()
    if "--version" in arguments:  # would print Hydra's and leave
        return argparse.Namespace(**{**vars(parser.parse_args([])), "version": True})
    parser.error = _refuse_flag  # type: ignore[method-assign]
    parser.set_defaults(version=False)
    flags, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        guess = nearest(name, [*Choices().groups, *Choices().keys])
        remedy = f"did you mean {guess}=VALUE?" if guess else "settings are written key=value"
        raise Refused(f"{unknown[0]}: there is no such flag; {remedy}")
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in commands if getattr(flags, name)]
    if len(given) > 1:
        raise Refused(f"{' and '.join(given)} exclude each other")
    if flags.resolve and not flags.cfg and not flags.help:
        raise Refused("--resolve: shows what references become; add --cfg job")
    if flags.package and not flags.cfg:
        raise Refused("--package: says what of the config to print; add --cfg job")
    if flags.experimental_rerun:  # it would execute the pickle
        raise Refused("--experimental-rerun: runs are continued by the command that began them")
    return flags


def _refuse_flag(message: str) -> Any:
    raise Refused(f"{message}; settings are written key=value, and --help lists them")


def folder_of(typed: str) -> Path:
    folder = Path(typed).expanduser().resolve()
    if not folder.is_dir():
        raise Refused(f"{typed}: is no folder of configs")
    return folder


def _hydra(
    flags: argparse.Namespace,
    choices: Choices,
    overrides: list[str],
    task: Callable[[DictConfig], Any],
) -> None:
    """Hydra with these flags and overrides, its exceptions coming through."""
    arguments = []
    for name in ("hydra_help", "shell_completion", "multirun", "cfg", "resolve", "package", "info"):
        value = getattr(flags, name)
        if value:
            arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    sys.argv[1:] = [*arguments, *overrides]
    hydra_private.run(task, str(choices.conf), choices.top)
