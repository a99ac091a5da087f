"""Commands that take flags instead of key=value: one line for a mistake.

Nothing here imports torch: `--help` answers without it.
"""

import argparse
import re
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
