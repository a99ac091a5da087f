"""Commands that take flags instead of key=value: one line for a mistake, and our exit codes.

Nothing here imports torch: `--help` answers without it.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from llm.config.errors import Failed, Refused
from llm.config.suggest import nearest

#: What may stand for a run: see `llm.runs.resolve`.
RUN = "a run's directory, its id or the end of it, or a checkpoint in one"


class Flags(argparse.ArgumentParser):
    """argparse with its complaints in one line that names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise Refused(message.removeprefix("argument "))

    def read(self, arguments: Sequence[str], alone: str) -> argparse.Namespace:
        """The flags; `alone` says what is wrong with a word that belongs to none."""
        flags, unknown = self.parse_known_args(arguments)
        if not unknown:
            return flags
        first = unknown[0]
        if not first.startswith("-"):
            raise Refused(f"{first!r} stands alone; {alone}")
        typed = first.lstrip("-").partition("=")[0].replace("_", "-")
        known = [option.lstrip("-") for option in self._option_string_actions]
        guess = next((flag for flag in known if flag.startswith(typed)), nearest(typed, known))
        hint = f"did you mean --{guess}?" if guess else "--help lists the flags"
        raise Refused(f"there is no flag {first.partition('=')[0]}; {hint}")

    def add_outputs_and_plugins(self) -> None:
        """The flags of every command that opens runs."""
        self.add_argument(
            "--outputs",
            metavar="DIR",
            type=Path,
            default=Path("outputs"),
            help="where runs/ lies (default %(default)s)",
        )
        self.add_argument(
            "--plugins",
            metavar="PACKAGE",
            action="append",
            default=[],
            help="a package whose code the run may use; only name what you trust",
        )


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for argparse that says why a value is refused."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except Refused as refusal:
            raise argparse.ArgumentTypeError(refusal.message) from None

    return convert


def command(name: str, task: Callable[[], None]) -> int:
    """Do `task`; the exit code: 0 done, 1 failed, 2 refused, 130 interrupted."""
    try:
        task()
        return 0
    except Refused as refusal:
        return _end(name, str(refusal), 2)
    except Failed as failure:
        return _end(name, str(failure), 1)
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1


def _end(name: str, line: str, code: int) -> int:
    shown = f"\033[31m{name}:\033[0m" if sys.stderr.isatty() else f"{name}:"
    print(f"{shown} {line}", file=sys.stderr)
    return code


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """While a run is opened: one line for whatever is wrong with its files."""
    try:
        yield
    except Refused as refusal:
        # The config's own words for it are those of llm.train, which takes key=value.
        line = re.sub(r"'?plugins=\[(.*?)\]'?( to the command)?", r"--plugins \1", str(refusal))
        raise Refused(line.replace("--plugins …", "--plugins PACKAGE")) from None
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Failed(f"{path} cannot be opened: {reason}") from error
