"""Talking to a run.

    python -m llm.chat
    python -m llm.chat --checkpoint outputs/runs/ID --prompt "Once upon a time"

Flags instead of key=value, since a prompt is free text. Heavy imports stand inside the functions:
`--help` answers without torch.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llm.config.errors import Failed, Refused
from llm.config.suggest import nearest
from llm.generate import MAX_TOKENS, TEMPERATURE, TOP_K, limits

if TYPE_CHECKING:
    from llm.data.corpus import Corpus, Dialogue
    from llm.generate.session import Session
    from llm.runs.reopen import OpenRun

#: Active parameters below which one thread decodes. Two on two cores were 3 to 16 times slower at
#: 3 to 19 million where other programs kept those cores busy (they wait for each other).
_ONE_THREAD = 50_000_000


class _Flags(argparse.ArgumentParser):
    """argparse with its complaints in one line that names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise Refused(message.removeprefix("argument "))

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        flags, unknown = self.parse_known_args(arguments)
        if not unknown:
            return flags
        first = unknown[0]
        if not first.startswith("-"):
            raise Refused(f'{first!r} stands alone; a prompt is given as --prompt "…"')
        typed = first.lstrip("-").partition("=")[0].replace("_", "-")
        known = [option.lstrip("-") for option in self._option_string_actions]
        guess = next((flag for flag in known if flag.startswith(typed)), nearest(typed, known))
        hint = f"did you mean --{guess}?" if guess else "--help lists the flags"
        raise Refused(f"there is no flag {first.partition('=')[0]}; {hint}")


def _checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for argparse that says why a value is refused."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except Refused as refusal:
            raise argparse.ArgumentTypeError(refusal.message) from None

    return convert


def _flags() -> _Flags:
    flags = _Flags(
        prog="python -m llm.chat",
        description="Talk to a model: the newest finished run, unless --checkpoint names another.",
        epilog="Without --prompt it is a conversation; /help in it lists the commands.",
        allow_abbrev=False,
    )
    count = _checked(limits.count)
    add = flags.add_argument
    add("--checkpoint", metavar="PATH", help="a run directory, or a checkpoint inside one")
    add("--prompt", metavar="TEXT", help="answer this, and leave")
    add(
        "--max-tokens",
        metavar="N",
        type=count,
        default=MAX_TOKENS,
        help="longest answer in tokens (default %(default)s)",
    )
    add(
        "--temperature",
        metavar="T",
        type=_checked(limits.temperature),
        default=TEMPERATURE,
        help=f"{limits.COLDEST} (sure of itself) to {limits.HOTTEST} (wild) (default %(default)s)",
    )
    add(
        "--top-k",
        metavar="K",
        type=count,
        default=TOP_K,
        help="draw from the K likeliest tokens only (default %(default)s)",
    )
    add("--seed", metavar="N", type=_checked(limits.seed), help="the same answers every time")
    add(
        "--outputs",
        metavar="DIR",
        type=Path,
        default=Path("outputs"),
        help="where runs/ lies (default %(default)s)",
    )
    add(
        "--plugins",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="a package whose code the run may use; only name what you trust",
    )
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 refused, 130 interrupted."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # no byte and no letter ends a conversation
            stream.reconfigure(errors="replace")
    try:
        flags = _flags().read(sys.argv[1:] if arguments is None else arguments)
        session, banner = _open(flags)
        if flags.prompt is None:
            session.run(banner)
        else:
            for piece in session.reply_to(flags.prompt):
                print(piece.text, end="", flush=True)
            print(flush=True)
        return 0
    except Refused as refusal:
        return _end(str(refusal), 2)
    except Failed as failure:
        return _end(str(failure), 1)
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


def _end(line: str, code: int) -> int:
    name = "\033[31mllm.chat:\033[0m" if sys.stderr.isatty() else "llm.chat:"
    print(f"{name} {line}", file=sys.stderr)
    return code


def _open(flags: argparse.Namespace) -> tuple["Session", str]:
    """The session that the flags ask for, and its banner."""
    path, which = _run_and_weights(flags)
    import torch

    from llm.generate.conversation import Conversation, Sampling
    from llm.generate.session import Session
    from llm.moe.layer import caveats
    from llm.runs.reopen import load_run

    try:
        run = load_run(path, which=which, plugins=flags.plugins)  # type: ignore[arg-type]
        corpus, dialogue = _corpus(run, flags.plugins)
    except Refused as refusal:
        # The config's own words for it are those of llm.train, which takes key=value.
        line = re.sub(r"'?plugins=\[(.*?)\]'?( to the command)?", r"--plugins \1", str(refusal))
        raise Refused(line.replace("--plugins …", "--plugins PACKAGE")) from None
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Failed(f"{path} cannot be opened: {reason}") from error
    if run.facts.get("params_active", _ONE_THREAD) < _ONE_THREAD:
        torch.set_num_threads(1)
    for caveat in caveats(run.model):
        print(f"({caveat})", file=sys.stderr)
    generator = torch.Generator(run.model.embedding.device)
    if flags.seed is None:
        generator.seed()
    else:
        generator.manual_seed(flags.seed)
    conversation = Conversation(run.model, run.tokenizer, dialogue, generator)
    sampling = Sampling(flags.max_tokens, flags.temperature, flags.top_k)
    at_terminal = flags.prompt is None and sys.stdin.isatty()
    return Session(conversation, run.tokenizer, corpus, sampling, at_terminal), _banner(run, which)


def _run_and_weights(flags: argparse.Namespace) -> tuple[Path, str]:
    """What to open: the path that was named, else the newest finished run."""
    if flags.checkpoint is None:
        return newest_finished(flags.outputs / "runs"), "best"
    path = Path(os.path.abspath(Path(flags.checkpoint).expanduser()))
    if path.name in ("best", "checkpoints") and (path.parent / "run.json").exists():
        return path.parent, "best" if path.name == "best" else "last"
    return path, "best"


def newest_finished(runs: Path) -> Path:
    """The run directory that was finished last.

    By the time of its run.json, which is written for the last time when a run ends. One that
    cannot be read is passed over. Raises Refused where there is none.
    """
    import json

    finished: list[tuple[float, str, Path]] = []
    unfinished = 0
    for file in runs.glob("[!.]*/run.json"):
        try:
            state = json.loads(file.read_text(encoding="utf-8"))["state"]
        except (OSError, ValueError, LookupError, TypeError):
            print(f"llm.chat: {file} cannot be read; passing it over", file=sys.stderr)
            continue
        if state == "finished":
            finished.append((file.stat().st_mtime, file.parent.name, file.parent))
        else:
            unfinished += 1
    if finished:
        return max(finished)[2]
    also = f" ({unfinished} unfinished; --checkpoint opens one)" if unfinished else ""
    raise Refused(f"there is no finished run in {runs}{also}; `make train` makes one")


def _corpus(run: "OpenRun", plugins: list[str]) -> tuple["Corpus | None", "Dialogue | None"]:
    """The run's corpus, and how to talk to a model of it.

    Somebody's own text may be gone by now; its class still says how to talk.
    """
    from llm.config.instantiate import instantiate
    from llm.config.schema import locate
    from llm.data.corpus import Corpus

    node = run.config["data"]
    kind = locate(node["_target_"], plugins)
    try:
        corpus = instantiate(node, "data", plugins)
    except Refused:
        return None, getattr(kind, "dialogue", None)
    return (corpus if isinstance(corpus, Corpus) else None), getattr(corpus, "dialogue", None)


def _banner(run: "OpenRun", which: str) -> str:
    """One line: the run, its size, its loss at these weights."""
    facts = run.facts
    parts = [run.folder.name]
    if "params_total" in facts:
        total, active = facts["params_total"], facts["params_active"]
        parts.append(f"{total:,} parameters" + (f" ({active:,} active)" if active < total else ""))
    known = [row for row in run.metrics if row["step"] == run.step and "val/loss" in row]
    if known:
        loss = f"validation loss {known[-1]['val/loss']:.4f}"
        if "val/floor" in known[-1]:
            loss += f" (floor {known[-1]['val/floor']:.4f}, excess {known[-1]['val/excess']:.4f})"
        parts.append(loss)
    parts.append(f"{'best ' if which == 'best' else ''}weights, step {run.step}")
    return " · ".join([*parts, "/help"])


if __name__ == "__main__":
    sys.exit(main())
