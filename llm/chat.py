"""Talking to a run.

    python -m llm.chat
    python -m llm.chat RUN --prompt "Once upon a time"

Flags instead of key=value, since a prompt is free text. Heavy imports stand inside the functions:
`--help` answers without torch.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm.config.command import exit_code
from llm.config.errors import Refused
from llm.config.flags import RUN, Flags, checked, opening
from llm.config.terminal import visible
from llm.generate import MAX_TOKENS, TEMPERATURE, TOP_K, limits
from llm.runs.resolve import RunPath, newest_finished, resolve

if TYPE_CHECKING:
    from llm.generate.session import Session
    from llm.runs.reopen import OpenRun

#: Active parameters below which one thread decodes. Two on two cores were 3 to 16 times slower at
#: 3 to 19 million where other programs kept those cores busy (they wait for each other).
_ONE_THREAD = 50_000_000


def _flags() -> Flags:
    flags = Flags(
        prog="python -m llm.chat",
        description="Talk to a model: RUN, or the newest run that is finished.",
        epilog="Without --prompt it is a conversation; /help in it lists the commands.",
        allow_abbrev=False,
    )
    count = checked(limits.count)
    add = flags.add_argument
    add("run", metavar="RUN", nargs="?", help=RUN)
    add("--checkpoint", metavar="RUN", help="the same")
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
        type=checked(limits.temperature),
        default=TEMPERATURE,
        help=f"{limits.COLDEST} (sure of itself) to {limits.HOTTEST} (wild), 0: always the "
        "likeliest token (default %(default)s)",
    )
    add(
        "--top-k",
        metavar="K",
        type=count,
        default=TOP_K,
        help="draw from the K likeliest tokens only (default %(default)s)",
    )
    add("--seed", metavar="N", type=checked(limits.seed), help="the same answers every time")
    flags.add_outputs_and_plugins()
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 refused, 130 interrupted."""
    for stream, errors in (
        (sys.stdin, "surrogateescape"),  # which the session mends, and says so
        (sys.stdout, "replace"),
        (sys.stderr, "replace"),
    ):
        if hasattr(stream, "reconfigure"):  # no byte and no letter ends a conversation
            stream.reconfigure(errors=errors)
    return exit_code("llm.chat", lambda: _chat(sys.argv[1:] if arguments is None else arguments))


def _chat(arguments: Sequence[str]) -> None:
    flags = _flags().read(arguments, 'a prompt is given as --prompt "…"')
    session, banner = _open(flags)
    if flags.prompt is None:
        session.run(banner)
        return
    for piece in session.reply_to(flags.prompt):
        session.show(piece)
    print(flush=True)
    session.note_forgotten()


def _open(flags: argparse.Namespace) -> tuple["Session", str]:
    """The session that the flags ask for, and its banner."""
    named = _named(flags)
    import torch

    from llm.build import caveats
    from llm.config.schema import locate
    from llm.generate.conversation import Conversation, Sampling
    from llm.generate.session import Session
    from llm.runs.reopen import load_run

    with opening(named.folder):
        run = load_run(named, which="best", plugins=flags.plugins)
        locate(run.config["data"]["_target_"], flags.plugins)  # a plugin's says how to talk
    if run.facts.get("params_active", _ONE_THREAD) < _ONE_THREAD:
        torch.set_num_threads(1)
    for caveat in caveats(run.model):
        print(f"({caveat})", file=sys.stderr)
    seed = secrets.randbits(63) if flags.seed is None else flags.seed
    conversation = Conversation(run.model, run.reading, seed, cuts=flags.prompt is None)
    sampling = Sampling(flags.max_tokens, flags.temperature, flags.top_k)
    at_terminal = flags.prompt is None and sys.stdin.isatty()
    return Session(conversation, sampling, at_terminal), _banner(run)


def _named(flags: argparse.Namespace) -> RunPath:
    """What to open: the run that was named, else the newest finished one."""
    if flags.run is not None and flags.checkpoint is not None:
        raise Refused(f"{flags.run} and --checkpoint {flags.checkpoint}: name one run")
    if flags.checkpoint is not None:
        return resolve(flags.checkpoint, flags.outputs)
    if flags.run is None:
        return RunPath(newest_finished(flags.outputs))
    try:
        return resolve(flags.run, flags.outputs)
    except Refused as refusal:
        raise Refused(f'{refusal}; a prompt is given as --prompt "…"') from None


def _banner(run: "OpenRun") -> str:
    """One line: the run, its size, its loss at these weights."""
    facts = run.facts
    parts = [run.folder.name]
    if "params_total" in facts:
        total, active = facts["params_total"], facts["params_active"]
        parts.append(f"{total:,} parameters" + (f" ({active:,} active)" if active < total else ""))
    known = run.evaluation
    if known:
        loss = f"validation loss {known['val/loss']:.4f}"
        if "val/floor" in known:
            loss += f" (floor {known['val/floor']:.4f}, excess {known['val/excess']:.4f})"
        parts.append(loss)
    return visible(" · ".join([*parts, run.title, "/help"]))


if __name__ == "__main__":
    sys.exit(main())
