"""The metric contract: what a model loses on the validation split, and against the floor.

`val/loss` is the token-weighted mean cross-entropy in nats per token over a fixed set of targets,
and nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llm.data.batches import IGNORED, Batch, evaluation_rows
from llm.data.corpus import Instrument
from llm.data.mixture import PreparedMixture
from llm.data.prepare import Prepared
from llm.generate import TEMPERATURE, TOP_K
from llm.generate.documents import write_documents
from llm.hardware.world import World
from llm.model.transformer import Transformer
from llm.reading import Reading
from llm.tokenizer.base import Tokenizer, array_of, lacking, well_formed


@dataclass(frozen=True)
class Examination:
    """Fixed rows of text, with what is known of each of their targets."""

    rows: Batch
    n_bytes: int | None  # UTF-8 bytes of the text of the targets, None where nobody knows
    floor_RT: np.ndarray | None = None  # true nats of each target
    skills_RT: np.ndarray | None = None
    skill_names: list[str] = field(default_factory=list)
    parts: dict[str, "Examination"] = field(default_factory=dict)  # of a mixture, in row order

    @property
    def n_tokens(self) -> int:
        return int((self.rows.targets_RT != IGNORED).sum())

    @property
    def floor(self) -> float | None:
        """The lowest possible loss in nats per token, where the corpus knows it."""
        if self.floor_RT is None:
            return None
        return float(self.floor_RT[self.rows.targets_RT != IGNORED].sum() / self.n_tokens)


def examination(
    prepared: Prepared | PreparedMixture, reading: Reading, limit: int | None, split: str = "val"
) -> Examination:
    """The first `limit` targets of a split, or all, in rows as `reading` has them.

    Those of a mixture are of all its parts, as many targets of each whatever the weights (fewer of
    a part that has no more): runs of other proportions are judged on the same text.
    """
    if isinstance(prepared, Prepared):
        return _examination(prepared, reading, limit, split)
    share = None if limit is None else max(1, limit // len(prepared.parts))
    parts = {n: _examination(p, reading, share, split) for n, p in prepared.parts.items()}
    rows = Batch(*map(np.concatenate, zip(*(part.rows for part in parts.values()), strict=True)))
    floors = [part.floor_RT for part in parts.values() if part.floor_RT is not None]
    floor_RT = np.concatenate(floors) if len(floors) == len(parts) else None
    sizes = [part.n_bytes for part in parts.values() if part.n_bytes is not None]
    n_bytes = sum(sizes) if len(sizes) == len(parts) else None
    return Examination(rows, n_bytes, floor_RT, parts=parts)


def _examination(
    prepared: Prepared, reading: Reading, limit: int | None, split: str
) -> Examination:
    ids, starts = prepared.tokens(split), prepared.document_starts(split)
    rows = evaluation_rows(ids, starts, reading.seq_len, limit)
    targets_M = rows.targets_RT[rows.targets_RT != IGNORED]
    n_bytes: int | None = prepared.manifest["splits"][split]["bytes"]
    if len(targets_M) < len(ids) - 1:
        n_bytes = _bytes(targets_M, prepared.tokenizer, None)
    known = prepared.floor() if split == "val" else None
    if known is None:
        return Examination(rows, n_bytes)
    names = reading.corpus.skills if isinstance(reading.corpus, Instrument) else []
    floor_RT, skills_RT = known["nats"][rows.places_RT], known["skills"][rows.places_RT]
    return Examination(rows, n_bytes, floor_RT, skills_RT, names)


def text_examination(text: str, reading: Reading, limit: int | None = None) -> Examination:
    """The first `limit` targets of a text, or all: one document, begun and ended as in training."""
    text, tokenizer = well_formed(text), reading.tokenizer
    parts = [reading.start_id], array_of(tokenizer, text), [tokenizer.eot]
    ids = np.concatenate(parts).astype(np.int64)
    rows = evaluation_rows(ids, np.zeros(1, np.int64), reading.seq_len, limit)
    targets_M = rows.targets_RT[rows.targets_RT != IGNORED]
    n_bytes: int | None = len(text.encode())
    if len(targets_M) < len(ids) - 1:
        unknown = [len(character.encode()) for character in lacking(tokenizer, text)]
        n_bytes = _bytes(targets_M, tokenizer, unknown)
    return Examination(rows, n_bytes)


def _bytes(
    targets_M: np.ndarray, tokenizer: Tokenizer, unknown: Sequence[int] | None
) -> int | None:
    """UTF-8 bytes of the text that targets stand for, None where nobody knows.

    The id of characters that the vocabulary lacks does not say how many bytes they are.

    Args:
        unknown: bytes of each character of the text that the vocabulary lacks; None where the text
            is not at hand
    """
    n_bytes = 0
    for token, count in zip(*np.unique(targets_M, return_counts=True), strict=True):
        if token != getattr(tokenizer, "unk", None):
            n_bytes += int(count) * len(tokenizer.token_bytes(int(token)))
        elif unknown is None:
            return None
        else:
            n_bytes += sum(unknown[:count])
    return n_bytes


@torch.no_grad()
def examine(
    model: Transformer,
    exam: Examination,
    reading: Reading,
    world: World | None = None,
    watch: Callable[[slice, dict[str, torch.Tensor]], None] | None = None,
) -> dict[str, float]:
    """Metrics `val/…` of `model`; how many rows it takes at once changes none of them.

    (But by rounding, and where experts have a capacity, which the rows of a call share.) Of each
    part of a mixture there are `val/loss/NAME`, `val/bpb/NAME` and, where it is known,
    `val/floor/NAME`. There is no `val/bpb` where nobody knows how many bytes the targets are.

    The processes of `world` take turns at batches that are the same for any number of them, so
    that not even rounding differs; each must call, and gets the same answer. `watch` is told of
    each part of this process: which rows of the examination, and what their routers did.
    """
    world = world or World()
    device = model.embedding.device
    was_training = model.training
    model.eval()
    nats_RT = np.zeros(exam.rows.tokens_RT.shape)
    batches = range(0, len(nats_RT), reading.eval_rows)
    for turn in range(0, len(batches), world.size):
        mine = turn + world.rank
        # Whoever has none left takes part all the same: FSDP gathers weights from everybody.
        first = batches[min(mine, len(batches) - 1)]
        part = slice(first, first + reading.eval_rows)
        inputs = {name: x_BT.to(device) for name, x_BT in reading.inputs(exam.rows, part).items()}
        with reading.autocast(device):
            output = model(**inputs)
        assert output.nats_BT is not None
        if watch is not None:  # of no rows, where this was done for company
            watch(part if mine < len(batches) else slice(part.stop, part.stop), output.router)
        if mine < len(batches):
            nats_RT[part] = output.nats_BT.cpu().double().numpy()  # MPS has no float64
    if world.size > 1:  # zeros and one value are added up, which is exact
        shared = "cuda" if device.type == "cuda" else "cpu"
        nats_RT = world.sum(torch.from_numpy(nats_RT).to(shared)).cpu().numpy()
    model.train(was_training)
    metrics = _metrics(exam, nats_RT)
    first = 0
    for name, part_exam in exam.parts.items():
        last = first + len(part_exam.rows.tokens_RT)
        found = _metrics(part_exam, nats_RT[first:last])
        kept = {k: found[f"val/{k}"] for k in ("loss", "bpb", "floor") if f"val/{k}" in found}
        metrics |= {f"val/{key}/{name}": value for key, value in kept.items()}
        first = last
    return metrics


def _metrics(exam: Examination, nats_RT: np.ndarray) -> dict[str, float]:
    counted = exam.rows.targets_RT != IGNORED
    total = float(nats_RT[counted].sum())
    metrics = {"val/loss": total / exam.n_tokens}
    if exam.n_bytes is not None:
        metrics["val/bpb"] = total / math.log(2) / max(exam.n_bytes, 1)
    if exam.floor_RT is None:
        return metrics
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
    model: Transformer,
    reading: Reading,
    seed: int,
    doing: Callable[[str], None] = lambda what: None,
    count: int = 200,
) -> dict[str, float]:
    """The share of `count` documents written by the model that an instrument accepts.

    Metrics `val/accepted` at temperature 1 and `val/accepted_chat` at chat's defaults; empty for a
    corpus that cannot tell. `doing` is told that this takes its time.
    """
    corpus = reading.corpus
    if not isinstance(corpus, Instrument):
        return {}
    doing(f"judging {2 * count} samples")
    shares = {}
    for name, temperature, top_k in (
        ("val/accepted", 1.0, None),
        ("val/accepted_chat", TEMPERATURE, TOP_K),
    ):
        texts = write_documents(model, reading, count, temperature, top_k, seed)
        shares[name] = sum(corpus.score(text).accepted for text in texts) / count
    return shares


if __name__ == "__main__":
    import sys

    from llm.evaluate_run import main

    sys.exit(main())
