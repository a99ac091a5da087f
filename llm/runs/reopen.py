"""A finished (or unfinished) run, opened for use."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.errors import Refused
from llm.model.transformer import Transformer
from llm.runs import checkpoint
from llm.runs.directory import read_facts
from llm.runs.identity import current
from llm.tokenizer import base as tokenizers
from llm.tokenizer.base import Tokenizer
from llm.tracking.log import MetricLog


@dataclass(frozen=True)
class OpenRun:
    """What `load_run` gives: everything needed to use the model or to read its history."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]  # run.json
    step: int  # of the weights
    model: Transformer  # in evaluation mode
    tokenizer: Tokenizer

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, oldest first."""
        return MetricLog.read(self.folder / "metrics.jsonl")


def load_run(
    path: str | Path,
    which: Literal["last", "best"] = "last",
    device: torch.device | str = "cpu",
    plugins: Sequence[str] = (),
) -> OpenRun:
    """Reopen a run; nothing that lies in it is executed.

    Args:
        path: a run directory, or one of its checkpoints
        which: the newest weights, whose loss is run.json's `val_loss`, or those with the lowest
        plugins: packages beside `llm` whose classes its config may name
    Raises:
        Refused: there is no run, or no weights yet
    """
    path = Path(path)
    chosen = path if (path / "checksums.json").exists() else None
    folder = path.parent.parent if chosen else path
    facts = read_facts(folder)
    if facts is None:
        raise Refused(f"{path} is no run directory and no checkpoint of one")
    config: Any = current(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    weights = checkpoint.read(chosen) if chosen else _newest(folder, which)
    tokenizer = tokenizers.load(folder, plugins)
    model = build_model(config, tokenizer.vocab_size, plugins)
    model.load_state_dict(weights.model)
    return OpenRun(folder, config, facts, weights.step, model.to(device).eval(), tokenizer)


def _newest(folder: Path, which: str) -> checkpoint.Checkpoint:
    """The weights asked for; damaged ones are passed over, and it is said."""
    problems: list[str] = []
    for parent in ["best", "checkpoints"] if which == "best" else ["checkpoints"]:
        found, damaged = checkpoint.newest(folder / parent)
        problems += damaged
        if found is not None:
            for line in problems:
                print(f"{line}; opening the ones before", file=sys.stderr)
            return found
    raise Refused("; ".join(problems) or f"{folder} has no checkpoint yet")
