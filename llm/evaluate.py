"""The metric contract: what a model loses on the validation split, and against the floor.

`val/loss` is the token-weighted mean cross-entropy in nats per token over a fixed set of targets,
and nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from llm.data.batches import IGNORED, Batch, evaluation_rows
from llm.data.corpus import Corpus, Instrument
from llm.data.prepare import Prepared
from llm.generate import TEMPERATURE, TOP_K
from llm.generate.sampling import sample_rows
from llm.hardware.machine import Machine
from llm.hardware.world import World
from llm.model.transformer import Transformer


@dataclass(frozen=True)
class Examination:
    """Fixed validation rows, with what is known of each of their targets."""

    rows: Batch
    n_bytes: int  # UTF-8 bytes of the targets
    floor_RT: np.ndarray | None  # true nats of each target
    skills_RT: np.ndarray | None
    skill_names: list[str]

    @property
    def n_tokens(self) -> int:
        return int((self.rows.targets_RT != IGNORED).sum())

    @property
    def floor(self) -> float | None:
        """The lowest possible loss in nats per token, where the corpus knows it."""
        if self.floor_RT is None:
            return None
        return float(self.floor_RT[self.rows.targets_RT != IGNORED].sum() / self.n_tokens)


def examination(prepared: Prepared, corpus: Corpus, seq_len: int, limit: int | None) -> Examination:
    """The validation rows of a corpus for a model of context `seq_len`."""
    ids = prepared.tokens("val")
    rows = evaluation_rows(ids, prepared.document_starts("val"), seq_len, limit)
    counted = rows.targets_RT != IGNORED
    tokenizer = prepared.tokenizer
    lengths = {
        int(t): len(tokenizer.token_bytes(int(t))) for t in np.unique(rows.targets_RT[counted])
    }
    n_bytes = sum(lengths[int(token)] for token in rows.targets_RT[counted])
    known = prepared.floor()
    if known is None:
        return Examination(rows, n_bytes, None, None, [])
    names = corpus.skills if isinstance(corpus, Instrument) else []
    return Examination(
        rows, n_bytes, known["nats"][rows.places_RT], known["skills"][rows.places_RT], names
    )


@torch.no_grad()
def examine(
    model: Transformer,
    exam: Examination,
    machine: Machine,
    batch_size: int,
    world: World | None = None,
    watch: Callable[[slice, dict[str, torch.Tensor]], None] | None = None,
) -> dict[str, float]:
    """Metrics `val/…` of `model`; the batch size changes none of them.

    The processes of `world` take turns at batches that are the same for any number of them, so
    that not even rounding differs; each must call, and gets the same answer. `watch` is told of
    each part of this process: which rows of the examination, and what their routers did.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    nats_RT = np.zeros(exam.rows.tokens_RT.shape)
    batches = range(0, len(nats_RT), batch_size)
    for turn in range(0, len(batches), world.size):
        mine = turn + world.rank
        # Whoever has none left takes part all the same: FSDP gathers weights from everybody.
        first = batches[min(mine, len(batches) - 1)]
        part = slice(first, first + batch_size)
        tokens_BT = torch.from_numpy(exam.rows.tokens_RT[part]).to(machine.device)
        targets_BT = torch.from_numpy(exam.rows.targets_RT[part]).to(machine.device)
        with machine.autocast():
            output = model(tokens_BT, targets_BT)
        assert output.nats_BT is not None
        if watch is not None:  # of no rows, where this was done for company
            watch(part if mine < len(batches) else slice(part.stop, part.stop), output.router)
        if mine < len(batches):
            nats_RT[part] = output.nats_BT.double().cpu().numpy()
    if world.size > 1:  # zeros and one value are added up, which is exact
        device = "cuda" if machine.device == "cuda" else "cpu"
        nats_RT = world.sum(torch.from_numpy(nats_RT).to(device)).cpu().numpy()
    model.train(was_training)
    counted = exam.rows.targets_RT != IGNORED
    total = float(nats_RT[counted].sum())
    metrics = {
        "val/loss": total / exam.n_tokens,
        "val/bpb": total / math.log(2) / max(exam.n_bytes, 1),
    }
    if exam.floor_RT is not None and exam.skills_RT is not None:
        floor = exam.floor
        assert floor is not None
        metrics["val/floor"] = floor
        metrics["val/excess"] = metrics["val/loss"] - floor
        above = nats_RT - exam.floor_RT
        for index, name in enumerate(exam.skill_names):
            here = counted & (exam.skills_RT == index)
            metrics[f"val/excess/{name}"] = float(above[here].sum()) / exam.n_tokens
            metrics[f"val/share/{name}"] = float(here.sum()) / exam.n_tokens
    return metrics


def acceptance(
    model: Transformer, prepared: Prepared, corpus: Corpus, seed: int, count: int = 200
) -> dict[str, float]:
    """The share of `count` documents written by the model that an instrument accepts.

    Metrics `val/accepted` at temperature 1 and `val/accepted_chat` at chat's defaults; empty for a
    corpus that cannot tell.
    """
    if not isinstance(corpus, Instrument):
        return {}
    tokenizer, shares = prepared.tokenizer, {}
    was_training = model.training
    model.eval()
    for name, temperature, top_k in (
        ("val/accepted", 1.0, None),
        ("val/accepted_chat", TEMPERATURE, TOP_K),
    ):
        generator = torch.Generator(model.embedding.device).manual_seed(seed)
        rows = sample_rows(
            model, tokenizer.eot, count, model.max_seq_len, temperature, top_k, generator
        )
        shares[name] = sum(corpus.score(tokenizer.decode(row)).accepted for row in rows) / count
    model.train(was_training)
    return shares
