"""The end of a run on the terminal: loss against the floor, the report card by skill, a sample."""

from pathlib import Path
from typing import Any

from llm.config.environment import invocation
from llm.data.batches import mix
from llm.generate import TEMPERATURE, TOP_K
from llm.generate.documents import write_documents
from llm.model.transformer import Transformer
from llm.reading import Reading
from llm.report.observatory import expert_lines
from llm.runs.resolve import newest_finished

_BAR = 28


def sample_texts(
    model: Transformer, reading: Reading, seed: int, step: int, count: int = 3
) -> list[dict[str, str]]:
    """What the model writes at chat's defaults, a function of seed and step: each `text`, and the
    `prompt` that it goes on from where there is one."""
    about = (count, TEMPERATURE, TOP_K, mix(seed, step, 3) >> 1)
    given = {"prompt": reading.opening} if reading.opening else {}
    return [{**given, "text": t} for t in write_documents(model, reading, *about, reading.opening)]


def card(
    folder: Path, facts: dict[str, Any], rows: list[dict[str, Any]], samples: list[dict[str, str]]
) -> str:
    """The lines that `llm.train` ends with, before the run directory."""
    lines = ["", *(f"  {line}" for line in samples[0]["text"].strip().split("\n")), ""]
    if "prompt" in samples[0]:
        lines[1:1] = [f"prompt           {samples[0]['prompt']!r}, from the validation text", ""]
    bits = f"   {facts['val_bpb']:.4f} bits a byte" if "val_bpb" in facts else ""
    lines.append(f"validation loss  {facts['val_loss']:.4f} nats a token{bits}")
    if facts.get("excess") is not None:
        lines += _against_the_floor(facts, rows)
    lines += expert_lines(folder)
    minutes, rest = divmod(round(facts["seconds"]), 60)
    lines += [
        f"trained on       {facts['tokens']:,} tokens in {minutes} min {rest} s "
        f"({facts['tokens_per_second']:,.0f} tokens/s), {facts['params_total']:,} parameters, "
        f"{facts['params_active']:,} active",
        f"picture          {folder / 'curve.png'}",
        f"talk to it       {command_for(folder, facts)}",
    ]
    return "\n".join(lines)


def command_for(folder: Path, facts: dict[str, Any]) -> str:
    """The command that talks to this run; it need not name one that stays the newest."""
    outputs = folder.parent.parent
    if facts.get("sweep") is None and newest_finished(outputs) == folder:
        return invocation("llm.chat", outputs=outputs)
    return invocation("llm.chat", str(folder))


def _against_the_floor(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    last = next(row for row in reversed(rows) if "val/excess" in row)
    lines = [
        f"floor            {facts['floor']:.4f}   the lowest loss that is possible",
        f"excess           {facts['excess']:.4f}   what is left to learn",
    ]
    by_skill = sorted(facts["excess_by_skill"].items(), key=lambda item: -item[1])
    lines[-1] += ", by skill:" if by_skill else ""
    largest = max([1e-9, *(value for _, value in by_skill)])  # a mixture has no skills of its own
    for name, value in by_skill:
        share = last[f"val/share/{name}"]
        if share:
            bar = "█" * max(0, round(_BAR * value / largest))
            lines.append(f"  {name:<14} {value:+.4f}  {share:4.0%} of tokens  {bar}")
    if "accepted" in facts:
        lines.append(
            f"samples accepted {facts['accepted']:.0%} at temperature 1, "
            f"{facts['accepted_chat']:.0%} at chat's defaults"
        )

    return lines
