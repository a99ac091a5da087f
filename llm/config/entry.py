"""The entry point: Hydra's command line, with its refusals in one line and our exit codes.

Hydra ends with text of its own and exit code 1 before any user code runs; here its exceptions are
caught, shortened, and told apart from failures. Nothing in this file imports torch: `--help`,
`--cfg` and shell completion answer without it.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config import overrides as override_reading
from llm.config.choices import Choices, conf_folder
from llm.config.errors import Failed, Interrupted, Refused
from llm.config.overrides import Typed
from llm.config.suggest import nearest
from llm.config.validate import Validated, validate


@dataclass
class Job:
    """What a command gets: the validated config, and the sweep that it is part of."""

    validated: Validated
    sweep: str | None = None  # name of the multirun
    overrides: list[str] = field(default_factory=list)  # as typed

    @property
    def config(self) -> dict[str, Any]:
        return self.validated.config

    @property
    def chosen(self) -> dict[str, str]:
        return self.validated.chosen


def main(command: str, task: Callable[[Job], None]) -> None:
    """Run `task` for the config that `sys.argv` describes; never returns.

    Args:
        command: name of the command, for messages ("llm.train")
        task: called once a job, in the same process unless a launcher plugin says otherwise
    """
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        _run(command, task, sys.argv[1:])
        code = 0
    except Refused as refusal:
        code = _end(command, str(refusal), 2)
    except Interrupted as interrupt:
        code = interrupt.exit_code
    except KeyboardInterrupt:
        code = _end(command, "interrupted before anything needed saving", 130)
    except Failed as failure:
        code = _end(command, str(failure), 1)
    except (HydraException, OmegaConfBaseException) as error:
        if show_traceback:
            raise
        code = _end(command, _one_line(error), 2)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _end(command: str, line: str, code: int) -> int:
    if sys.stderr.isatty():
        line = f"\033[31m{command}:\033[0m {line}"
    else:
        line = f"{command}: {line}"
    print(line, file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages without their second lines and advice to type `+`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        guess = nearest(str(error.missing_cfg_file), error.options or [])
        return f"{error.missing_cfg_file}: no such config" + (
            f"; did you mean {guess}?" if guess else ""
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _run(command: str, task: Callable[[Job], None], arguments: list[str]) -> None:
    # argparse would print its usage and leave; Hydra's parser is private, but its flags are not.
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse_flag  # type: ignore[method-assign]
    flags = parser.parse_args(arguments)
    if flags.shell_completion or flags.help or flags.hydra_help or flags.info:
        sys.argv[1:] = arguments
        _hydra(lambda config: None)
        return
    choices = Choices(
        *([Path(flags.config_dir).resolve()] if flags.config_dir else []), conf_folder()
    )
    typed = override_reading.read(flags.overrides, choices, flags.multirun)
    if flags.cfg:
        top = OmegaConf.load(conf_folder() / "train.yaml")
        from llm.config.choices import leaves

        override_reading.check_listed(typed, choices, [key for key, _ in leaves(top, "")])
    jobs = _Jobs(command, task, choices, typed, flags.multirun)
    others = [argument for argument in arguments if argument not in flags.overrides]
    sys.argv[1:] = [*others, *(override.for_hydra for override in typed), *jobs.sweep_overrides()]
    _hydra(jobs)
    if jobs.problem is not None:
        raise jobs.problem


def _refuse_flag(message: str) -> Any:
    raise Refused(f"{message}; settings are written key=value, and --help lists them")


def _hydra(task: Callable[[DictConfig], None]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come through to `main`
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="train")(task)()


class _Jobs:
    """Hydra's task function: validates a composed config and hands it to the command."""

    def __init__(
        self,
        command: str,
        task: Callable[[Job], None],
        choices: Choices,
        typed: list[Typed],
        multirun: bool,
    ):
        self.command, self.task, self.choices = command, task, choices
        self.typed, self.multirun = typed, multirun
        self.problem: BaseException | None = None
        self.sweep = _sweep_name(typed) if multirun else None
        # The place of a task function is what Hydra names the job after.
        self.__name__ = "train"

    def sweep_overrides(self) -> list[str]:
        if not self.multirun or any(o.key == "hydra.sweep.dir" for o in self.typed):
            return []
        return [f"hydra.sweep.dir=${{outputs}}/sweeps/{self.sweep}"]

    def __call__(self, config: DictConfig) -> None:
        """One job. In a single run a problem waits for Hydra to unwind: it would print its own."""
        try:
            self.task(Job(self.validated(config), self.sweep, [o.text for o in self.typed]))
        except (Refused, Failed) as problem:
            if self.multirun:
                number = HydraConfig.get().job.num
                _end(self.command, f"job {number}: {problem}", 2)
                raise
            self.problem = problem

    def validated(self, config: DictConfig) -> Validated:
        hydra_config = HydraConfig.get()
        chosen = {k: v for k, v in hydra_config.runtime.choices.items() if isinstance(v, str)}
        raw = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(raw, dict)
        typed = {o.key: o.text for o in self.typed if not o.is_group}
        plugins = self.plugins(raw)
        return validate(raw, self.choices, chosen, typed, plugins)

    def plugins(self, raw: dict[str, Any]) -> list[str]:
        """Packages whose code may run: from the command line alone, never from a file."""
        listed = raw.get("plugins") or []
        if listed and not any(override.key == "plugins" for override in self.typed):
            raise Refused("plugins: only the command line can list them, not a config file")
        return [str(package) for package in listed]


def _sweep_name(typed: list[Typed]) -> str:
    """The same line, in any order of its overrides, is the same sweep."""
    import hashlib

    text = "\n".join(sorted(override.for_hydra for override in typed))
    swept = [override.key.split(".")[-1] for override in typed if len(override.values) > 1]
    return "-".join([*swept[:4], hashlib.sha256(text.encode()).hexdigest()[:8]]) or "sweep"
