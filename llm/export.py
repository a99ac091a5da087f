"""A run as a folder that other tools open.

    python -m llm.export RUN --to DIR

Flags as `llm.chat` has them. Heavy imports stand inside the functions: `--help` answers without
torch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.command import exit_code
from llm.config.flags import RUN, Flags, opening
from llm.runs.resolve import resolve

if TYPE_CHECKING:
    from llm.runs.reopen import OpenRun


def _flags() -> Flags:
    flags = Flags(
        prog="python -m llm.export",
        description="Write a run as a folder of public format: transformers opens it.",
        epilog="RUN/checkpoints exports the newest weights instead of the best ones.",
        allow_abbrev=False,
    )
    flags.add_argument("run", metavar="RUN", help=RUN)
    flags.add_argument("--to", metavar="DIR", type=Path, required=True, help="a new folder")
    flags.add_outputs_and_plugins()
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 refused, 130 interrupted."""
    typed = sys.argv[1:] if arguments is None else arguments
    return exit_code("llm.export", lambda: _export(typed))


def _export(arguments: Sequence[str]) -> None:
    flags = _flags().read(arguments, "the folder is given as --to DIR")
    named = resolve(flags.run, flags.outputs)
    from llm.hf.interchange import save
    from llm.runs.reopen import load_run

    with opening(named.folder):
        run = load_run(named, which="best", plugins=flags.plugins)
    folder = save(run.model, flags.to.expanduser(), run.tokenizer, _story(run), run.reading)
    if not (folder / "tokenizer.json").exists():
        kind = type(run.tokenizer).__name__
        print(f"no tokenizer.json can express the tokenizer {kind}: weights alone", file=sys.stderr)
    print(folder)


def _story(run: "OpenRun") -> dict[str, Any]:
    """How the model was made, for its card."""
    facts, config = run.facts, run.config
    known = run.evaluation
    story = {
        "run": run.folder.name,
        "trained with": f"My Simple LLM {facts.get('versions', {}).get('my-simple-llm', '')}",
        "commit": facts.get("git_commit"),
        "data": config["data"]["_target_"].removeprefix("llm.data."),
        "data fingerprint": facts.get("data_fingerprint"),
        "tokenizer": type(run.tokenizer).__name__,
        "seed": config["seed"],
        "steps": run.step,
    }
    if known:
        story["tokens"] = f"{known['tokens']:,}"
        story["validation loss (nats per token)"] = f"{known['val/loss']:.4f}"
        if "val/bpb" in known:
            story["bits per byte"] = f"{known['val/bpb']:.4f}"
    return {label: value for label, value in story.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
