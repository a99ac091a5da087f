"""What a finished run loses on a split of its data, or on any text: `python -m llm.evaluate`.

Flags as `llm.chat` has them. Heavy imports stand inside the functions.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.command import exit_code
from llm.config.errors import Failed, Refused
from llm.config.flags import RUN, Flags, checked, opening
from llm.data.encoding import Malformed, characters
from llm.generate import limits
from llm.runs.resolve import other_folder, resolve

if TYPE_CHECKING:
    from llm.data.mixture import PreparedMixture
    from llm.data.prepare import Prepared
    from llm.evaluate import Examination
    from llm.model.transformer import Transformer
    from llm.reading import Reading
    from llm.runs.reopen import OpenRun

#: So many of the characters that a vocabulary lacks are shown.
_SHOWN = 12


#: What `--tokens all` means.
_ALL = 0


def _tokens(text: str) -> int:
    return _ALL if text == "all" else limits.count(text)


def _flags() -> Flags:
    flags = Flags(
        prog="python -m llm.evaluate",
        description="Loss, bits per byte and perplexity of a run, on its own data or on a text.",
        epilog="A folder that llm.export wrote may stand for RUN, with --text.",
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("run", metavar="RUN", help=RUN)
    add("--split", choices=("val", "test", "train"), help="of the run's data (default val)")
    add("--text", metavar="FILE", type=Path, help="this text instead, UTF-8, as one document")
    add(
        "--tokens",
        metavar="N",
        type=checked(_tokens),
        help="the first N, or all (default: of a split as in training, of a text all)",
    )
    flags.add_outputs_and_plugins()
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 refused, 130 interrupted."""
    typed = sys.argv[1:] if arguments is None else arguments
    return exit_code("llm.evaluate", lambda: _evaluate(typed))


def _evaluate(arguments: Sequence[str]) -> None:
    flags = _flags().read(arguments, "one run is evaluated at a time")
    from llm.evaluate import examine, text_examination
    from llm.tokenizer.base import lacking

    if flags.split and flags.text:
        raise Refused("--split and --text exclude each other")
    model, reading, run, label = _open(flags.run, flags.outputs, flags.plugins)
    if flags.text is not None:
        what, text = str(flags.text), _text(flags.text)
        exam = text_examination(text, reading, flags.tokens or None)
        unknown = list(dict.fromkeys(lacking(reading.tokenizer, text)))
        if unknown:
            shown = " ".join(unknown[:_SHOWN]) + (" …" if len(unknown) > _SHOWN else "")
            line = f"the vocabulary lacks {len(unknown)} characters of this text: {shown}"
            print(f"llm.evaluate: {line}", file=sys.stderr)
    elif run is None:
        raise Refused(f"{flags.run} knows no data; give a text: --text FILE")
    else:
        what = flags.split or "val"
        eval_tokens = run.config["train"]["eval_tokens"]
        limit = eval_tokens if flags.tokens is None else flags.tokens or None
        exam = _split(run, what, limit, flags.plugins)
    device = _device({} if run is None else run.facts)
    metrics = examine(model.to(device), exam, reading.on(device))
    print(_told(metrics, exam, what, label))


def _device(facts: dict[str, Any]) -> str:
    """The run's device where there is one here, and its threads, so that the figures are equal."""
    from llm.hardware.limits import cores
    from llm.hardware.machine import Hardware

    threads = facts.get("threads")
    settings = {"precision": "auto", "deterministic": facts.get("deterministic", False)}
    settings["threads"] = threads if threads and threads <= cores() else None
    hardware = Hardware(device=facts.get("device", "auto"), **settings)
    try:
        machine = hardware.resolve()
    except Refused:
        machine = Hardware(device="auto", **settings).resolve()
    hardware.start(machine, {})
    return machine.device


def _open(
    typed: str, outputs: Path, plugins: list[str]
) -> "tuple[Transformer, Reading, OpenRun | None, str]":
    """The model, how it reads, its run where it has one, and which weights these are."""
    path = other_folder(typed)
    if path is not None and (path / "config.json").exists():  # of public format
        from llm import hf

        model, reading = hf.load(path), hf.load_reading(path)
        n_ids = model.embedding.shape[0]
        if reading.tokenizer.vocab_size > n_ids:
            raise Refused(
                f"{path}: the tokenizer has {reading.tokenizer.vocab_size} ids, the model {n_ids}"
            )
        return model, reading, None, f"the weights of {path}"
    named = resolve(typed, outputs)
    from llm.runs.reopen import load_run

    with opening(named.folder):
        run = load_run(named, which="best", plugins=plugins)
    weights, _, step = run.title.partition(",")
    return run.model, run.reading, run, f"{weights} of {run.folder.name},{step}"


def _text(file: Path) -> str:
    try:
        text = "".join(characters([file.expanduser().read_bytes()], None, None))
    except Malformed as bad:
        problem = bad.problem.split(";")[0]
        raise Refused(f"--text: {file} {problem}; write it as UTF-8") from None
    except OSError as error:
        raise Refused(f"--text: {file}: {error.strerror}") from None
    if not text:
        raise Refused(f"--text: {file} is empty")
    return text


def _split(run: "OpenRun", split: str, limit: int | None, plugins: list[str]) -> "Examination":
    """A split of the run's data."""
    from llm.data.prepare import Prepared
    from llm.evaluate import examination

    prepared = _prepared(run, plugins)
    if not isinstance(prepared, Prepared):
        if split != "val":
            parts = "a mixture is judged on the val splits of its parts only"
            raise Refused(f"--split {split}: {parts}")
    elif split not in prepared.splits:
        raise Refused(f"--split {split}: the data has {' and '.join(prepared.splits)} only")
    return examination(prepared, run.reading, limit, split)


def _prepared(run: "OpenRun", plugins: list[str]) -> "Prepared | PreparedMixture":
    """The run's tokens, found by their fingerprint; made again from the text where they are gone.

    The text itself may have moved, or have changed since.
    """
    from llm.config.jobs import Job
    from llm.config.validate import Validated
    from llm.data.mixture import find_prepared
    from llm.prepare import prepare_data

    outputs = run.folder.parent.parent
    found = find_prepared(outputs / "data", run.facts, run.config["data"], tuple(plugins))
    if found is not None:
        return found
    config = {**run.config, "outputs": str(outputs), "plugins": plugins}
    chosen = run.facts.get("chosen", {"data": "data", "tokenizer": "tokenizer"})
    _, prepared = prepare_data(Job(Validated(config, {}, chosen, [])))
    if prepared.fingerprint != run.facts["data_fingerprint"]:
        raise Failed("the run's data is not what it was: text that is on this machine has changed")
    return prepared


def _told(metrics: dict[str, float], exam: "Examination", what: str, label: str) -> str:
    loss = metrics["val/loss"]
    lines = [
        f"loss          {loss:.4f} nats a token",
        f"perplexity    {math.exp(loss):.4f}",
    ]
    if "val/bpb" in metrics:
        lines.append(f"bits a byte   {metrics['val/bpb']:.4f}")
    else:
        lines.append("bits a byte   not known: the vocabulary lacks characters of the text")
    if "val/floor" in metrics:
        floor, excess = metrics["val/floor"], metrics["val/excess"]
        lines.append(f"above floor   {excess:.4f} (floor {floor:.4f} nats a token)")
    size = "" if exam.n_bytes is None else f", {exam.n_bytes:,} bytes"
    lines.append(f"on            {what}, {exam.n_tokens:,} tokens{size}")
    return "\n".join([*lines, f"by            {label}"])
