"""What a finished run loses on a split of its data, or on any text: `python -m llm.evaluate`.

Flags as `llm.chat` has them. Heavy imports stand inside the functions.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm.config.command import exit_code
from llm.config.errors import Failed, Refused
from llm.config.flags import RUN, Flags, checked, opening
from llm.generate import limits
from llm.runs.resolve import other_folder, resolve

if TYPE_CHECKING:
    from llm.evaluate import Examination
    from llm.model.transformer import Transformer
    from llm.runs.reopen import OpenRun
    from llm.tokenizer.base import Tokenizer

#: Rows of a batch for a folder that says nothing of it.
_ROWS = 8


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
    from llm.evaluate import examine
    from llm.hardware.machine import Hardware

    if flags.split and flags.text:
        raise Refused("--split and --text exclude each other")
    model, tokenizer, run, label = _open(flags.run, flags.outputs, flags.plugins)
    if flags.text is not None:
        limit = flags.tokens or None
        exam, what = _text(flags.text, tokenizer, model.max_seq_len, limit), str(flags.text)
    elif run is None:
        raise Refused(f"{flags.run} knows no data; give a text: --text FILE")
    else:
        what = flags.split or "val"
        eval_tokens = run.config["train"]["eval_tokens"]
        limit = eval_tokens if flags.tokens is None else flags.tokens or None
        exam = _split(run, what, limit, flags.plugins)
    hardware = Hardware(device="auto", precision="auto", threads=None)
    machine = hardware.resolve()
    hardware.start(machine, {})
    rows = run.config["train"]["batch_size"] if run else _ROWS
    metrics = examine(model.to(machine.device), exam, machine, rows)
    print(_told(metrics, exam, what, label))


def _open(
    typed: str, outputs: Path, plugins: list[str]
) -> "tuple[Transformer, Tokenizer, OpenRun | None, str]":
    """The model, its tokenizer, its run where it has one, and which weights these are."""
    path = other_folder(typed)
    if path is not None and (path / "config.json").exists():  # of public format
        from llm import hf

        tokenizer = hf.load_tokenizer(path)
        if tokenizer is None:
            raise Refused(f"{path} has no tokenizer of ours, so its ids cannot be counted in bytes")
        model = hf.load(path)
        n_ids = model.embedding.shape[0]
        if tokenizer.vocab_size > n_ids:
            raise Refused(
                f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model {n_ids}"
            )
        return model, tokenizer, None, f"the weights of {path}"
    named = resolve(typed, outputs)
    from llm.runs.reopen import load_run

    with opening(named.folder):
        run = load_run(named, which="best", plugins=plugins)
    weights, _, step = run.title.partition(",")
    return run.model, run.tokenizer, run, f"{weights} of {run.folder.name},{step}"


def _text(file: Path, tokenizer: "Tokenizer", seq_len: int, limit: int | None) -> "Examination":
    """The text of a file, between two end-of-texts."""
    import numpy as np

    from llm.evaluate import plain_examination

    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"--text: {file} is not UTF-8") from None
    except OSError as error:
        raise Refused(f"--text: {file}: {error.strerror}") from None
    if not text:
        raise Refused(f"--text: {file} is empty")
    ids = np.array([tokenizer.eot, *tokenizer.encode(text), tokenizer.eot])
    return plain_examination(ids, np.zeros(1, np.int64), tokenizer, seq_len, limit)


def _split(run: "OpenRun", split: str, limit: int | None, plugins: list[str]) -> "Examination":
    """A split of the run's data: prepared anew where it is gone, the same by its fingerprint."""
    from llm.config.jobs import Job
    from llm.config.validate import Validated
    from llm.data.prepare import Prepared
    from llm.evaluate import examination, plain_examination
    from llm.prepare import prepare_data

    outputs = str(run.folder.parent.parent)
    config = {**run.config, "outputs": outputs, "plugins": plugins}
    chosen = run.facts.get("chosen", {"data": "data", "tokenizer": "tokenizer"})
    corpus, prepared = prepare_data(Job(Validated(config, {}, chosen, [])))
    if prepared.fingerprint != run.facts["data_fingerprint"]:
        raise Failed("the run's data is not what it was: text that is on this machine has changed")
    seq_len = run.config["model"]["max_seq_len"]
    if split == "val":
        masked = run.config["data"].get("document_mask", False)
        return examination(prepared, corpus, seq_len, limit, masked)
    if not isinstance(prepared, Prepared):
        raise Refused(f"--split {split}: a mixture is judged on the val splits of its parts only")
    if split not in prepared.splits:
        raise Refused(f"--split {split}: the data has {' and '.join(prepared.splits)} only")
    starts = prepared.document_starts(split)
    return plain_examination(prepared.tokens(split), starts, run.tokenizer, seq_len, limit)


def _told(metrics: dict[str, float], exam: "Examination", what: str, label: str) -> str:
    loss = metrics["val/loss"]
    lines = [
        f"loss          {loss:.4f} nats a token",
        f"perplexity    {math.exp(loss):.4f}",
        f"bits a byte   {metrics['val/bpb']:.4f}",
    ]
    if "val/floor" in metrics:
        floor, excess = metrics["val/floor"], metrics["val/excess"]
        lines.append(f"above floor   {excess:.4f} (floor {floor:.4f} nats a token)")
    lines.append(f"on            {what}, {exam.n_tokens:,} tokens, {exam.n_bytes:,} bytes")
    return "\n".join([*lines, f"by            {label}"])
