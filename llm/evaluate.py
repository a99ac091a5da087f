"""The metric contract: what a model loses on the validation split, and against the floor.

`val/loss` is the token-weighted mean cross-entropy in nats per token over a fixed set of targets,
and nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from llm.data.batches import IGNORED, Batch, evaluation_rows
from llm.data.corpus import Corpus, Instrument
from llm.data.mixture import Mixture, PreparedMixture
from llm.data.prepare import Prepared
from llm.generate import TEMPERATURE, TOP_K
from llm.generate.sampling import sample_rows
from llm.hardware.machine import Machine
from llm.hardware.world import World
from llm.model.transformer import Transformer
from llm.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Examination:
    """Fixed validation rows, with what is known of each of their targets."""

    rows: Batch
    n_bytes: int  # UTF-8 bytes of the targets
    floor_RT: np.ndarray | None  # true nats of each target
    skills_RT: np.ndarray | None
    skill_names: list[str]
    parts: dict[str, "Examination"] = field(default_factory=dict)  # of a mixture, in row order
    document_mask: bool = False  # rows are read as training reads them

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
    prepared: Prepared | PreparedMixture,
    corpus: Corpus | Mixture,
    seq_len: int,
    limit: int | None,
    document_mask: bool = False,
) -> Examination:
    """The validation rows of a corpus for a model of context `seq_len`.

    Those of a mixture are of all its parts, as many targets of each whatever the weights (fewer of
    a part that has no more): runs of other proportions are judged on the same text.
    """
    if isinstance(prepared, Prepared):
        assert not isinstance(corpus, Mixture)
        exam = _examination(prepared, corpus, seq_len, limit)
        return replace(exam, document_mask=document_mask)
    assert isinstance(corpus, Mixture)
    share = None if limit is None else max(1, limit // len(prepared.parts))
    parts = {
        name: _examination(part, corpus.corpora[name], seq_len, share)
        for name, part in prepared.parts.items()
    }
    rows = Batch(*map(np.concatenate, zip(*(part.rows for part in parts.values()), strict=True)))
    floors = [part.floor_RT for part in parts.values() if part.floor_RT is not None]
    floor_RT = np.concatenate(floors) if len(floors) == len(parts) else None
    n_bytes = sum(part.n_bytes for part in parts.values())
    return Examination(rows, n_bytes, floor_RT, None, [], parts, document_mask)


def _examination(
    prepared: Prepared, corpus: Corpus, seq_len: int, limit: int | None
) -> Examination:
    ids, starts = prepared.tokens("val"), prepared.document_starts("val")
    exam = plain_examination(ids, starts, prepared.tokenizer, seq_len, limit)
    known = prepared.floor()
    if known is None:
        return exam
    names = corpus.skills if isinstance(corpus, Instrument) else []
    places_RT = exam.rows.places_RT
    floor_RT, skills_RT = known["nats"][places_RT], known["skills"][places_RT]
    return replace(exam, floor_RT=floor_RT, skills_RT=skills_RT, skill_names=names)


def plain_examination(
    ids: np.ndarray, starts: np.ndarray, tokenizer: Tokenizer, seq_len: int, limit: int | None
) -> Examination:
    """The rows of any stream of ids, of which no probabilities are known.

    Args:
        ids: end-of-text, document, end-of-text, …, and a last end-of-text
        starts: where the end-of-text before each document stands
    """
    rows = evaluation_rows(ids, starts, seq_len, limit)
    counted = rows.targets_RT != IGNORED
    lengths = {
        int(t): len(tokenizer.token_bytes(int(t))) for t in np.unique(rows.targets_RT[counted])
    }
    n_bytes = sum(lengths[int(token)] for token in rows.targets_RT[counted])
    return Examination(rows, n_bytes, None, None, [])


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

    Of each part of a mixture there are `val/loss/NAME`, `val/bpb/NAME` and, where it is known,
    `val/floor/NAME`.

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
        tokens_BT, targets_BT, documents_BT = to_device(
            exam.rows, part, machine.device, exam.document_mask
        )
        with machine.autocast():
            output = model(tokens_BT, targets_BT, document_ids_BT=documents_BT)
        assert output.nats_BT is not None
        if watch is not None:  # of no rows, where this was done for company
            watch(part if mine < len(batches) else slice(part.stop, part.stop), output.router)
        if mine < len(batches):
            nats_RT[part] = output.nats_BT.cpu().double().numpy()  # MPS has no float64
    if world.size > 1:  # zeros and one value are added up, which is exact
        device = "cuda" if machine.device == "cuda" else "cpu"
        nats_RT = world.sum(torch.from_numpy(nats_RT).to(device)).cpu().numpy()
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


def to_device(
    rows: Batch, part: slice, device: torch.device | str, document_mask: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, targets and, where documents are kept apart, document ids of some rows: (B, T)."""
    chosen = [rows.tokens_RT, rows.targets_RT, *([rows.documents_RT] if document_mask else [])]
    moved = [torch.from_numpy(array_RT[part]).to(device) for array_RT in chosen]
    return moved[0], moved[1], moved[2] if document_mask else None


def _metrics(exam: Examination, nats_RT: np.ndarray) -> dict[str, float]:
    counted = exam.rows.targets_RT != IGNORED
    total = float(nats_RT[counted].sum())
    metrics = {
        "val/loss": total / exam.n_tokens,
        "val/bpb": total / math.log(2) / max(exam.n_bytes, 1),
    }
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
    prepared: Prepared | PreparedMixture,
    corpus: Corpus | Mixture,
    seed: int,
    doing: Callable[[str], None] = lambda what: None,
    count: int = 200,
) -> dict[str, float]:
    """The share of `count` documents written by the model that an instrument accepts.

    Metrics `val/accepted` at temperature 1 and `val/accepted_chat` at chat's defaults; empty for a
    corpus that cannot tell. `doing` is told that this takes its time.
    """
    if not isinstance(corpus, Instrument):
        return {}
    doing(f"judging {2 * count} samples")
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


if __name__ == "__main__":
    import sys

    from llm.evaluate_run import main

    sys.exit(main())
