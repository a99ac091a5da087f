"""A finished (or unfinished) run, opened for use."""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.evaluate import examine, text_examination
from llm.generate import MAX_TOKENS, TEMPERATURE, TOP_K
from llm.generate.engine import Engine
from llm.generate.stream import stream
from llm.model.transformer import Transformer
from llm.reading import Reading
from llm.runs import checkpoint
from llm.runs.directory import read_facts
from llm.runs.identity import current
from llm.runs.resolve import OUTPUTS, RunPath, resolve
from llm.tokenizer import base as tokenizers
from llm.tokenizer.base import Tokenizer
from llm.tracking.log import MetricLog


@dataclass(frozen=True)
class OpenRun:
    """What `load_run` gives: everything needed to use the model or to read its history."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]  # run.json
    weights: Path  # the checkpoint that is open
    step: int  # of the weights
    model: Transformer  # in evaluation mode
    reading: Reading

    @property
    def tokenizer(self) -> Tokenizer:
        return self.reading.tokenizer

    @property
    def title(self) -> str:
        """Which weights these are: "best weights, step 1200"."""
        return f"{'best ' if self.weights.parent.name == 'best' else ''}weights, step {self.step}"

    @property
    def evaluation(self) -> dict[str, Any]:
        """The row of the metric log that judges these weights, empty where there is none."""
        rows = [r for r in self.metrics if r["step"] == self.step and r.get("val/loss") is not None]
        return rows[-1] if rows else {}

    def loss(self, text: str) -> float:
        """Nats per token of a text: what `llm.evaluate --text` says of it."""
        reading = self.reading.on(self.model.embedding.device)
        return examine(self.model, text_examination(text, reading), reading)["val/loss"]

    def generate(
        self,
        text: str = "",
        max_tokens: int = MAX_TOKENS,
        temperature: float = TEMPERATURE,
        top_k: int | None = TOP_K,
        seed: int | None = None,
    ) -> str:
        """How a document goes on that begins with `text`, until it ends or is `max_tokens` long.

        Args:
            temperature: 0 takes the likeliest token
            top_k: draw from so many of the likeliest tokens only, None for all
            seed: the same text every time; None for another one each time
        Raises:
            Refused: the text is longer than the model's context
        """
        engine = Engine(self.model, 1, allowed_V=self.reading.allowed_V)
        seed = secrets.randbits(63) if seed is None else seed
        prompt = self.reading.prompt(self.tokenizer.encode(text))
        drawn = stream(engine, prompt, max_tokens, temperature, top_k, seed)
        tokens = (token for token, _ in drawn)
        return self.tokenizer.decode(list(takewhile(lambda t: t != self.tokenizer.eot, tokens)))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, oldest first."""
        return MetricLog.read(self.folder / "metrics.jsonl")


def load_run(
    name: str | Path | RunPath,
    which: Literal["last", "best"] = "last",
    device: torch.device | str = "cpu",
    plugins: Sequence[str] = (),
    outputs: str | Path = OUTPUTS,
) -> OpenRun:
    """Reopen a run; nothing that lies in it is executed.

    Args:
        name: as in `llm.runs.resolve`: a run's directory, its id or the end of it, or a checkpoint
        which: the newest weights, whose loss is run.json's `val_loss`, or those with the lowest,
            where `name` means the run and not some of its weights
        plugins: packages beside `llm` whose classes its config may name
        outputs: ids are looked for in `outputs/runs`
    Raises:
        Refused: there is no such run, or no weights yet
    """
    folder, chosen = resolve(name, Path(outputs))
    facts = read_facts(folder)
    assert facts is not None
    config: Any = current(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    weights = _weights(folder, chosen or folder / {"last": "checkpoints", "best": "best"}[which])
    tokenizer = tokenizers.load(folder, plugins)
    model = build_model(config, tokenizer.vocab_size, plugins)
    model.load_state_dict(weights.model)
    model = model.to(device).eval()
    reading = Reading.of(config, tokenizer, _corpus(config, plugins), facts)
    return OpenRun(folder, config, facts, weights.folder, weights.step, model, reading)


def _corpus(config: dict[str, Any], plugins: Sequence[str]) -> Any:
    """Where the run's text comes from, None where that is gone by now."""
    try:
        return instantiate(config["data"], "data", plugins)
    except (Refused, OSError):
        return None


def _weights(folder: Path, chosen: Path) -> checkpoint.Checkpoint:
    """The weights asked for; damaged ones are passed over, and it is said."""
    if chosen.parent != folder:
        return checkpoint.read(chosen)
    problems: list[str] = []
    for parent in dict.fromkeys([chosen, folder / "checkpoints"]):
        found, damaged = checkpoint.newest(parent)
        problems += damaged
        if found is not None:
            for line in problems:
                print(f"{line}; opening the ones before", file=sys.stderr)
            return found
    raise Refused("; ".join(problems) or f"{folder} has no checkpoint yet")
