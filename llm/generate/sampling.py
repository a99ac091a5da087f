"""Sampling with a key-value cache.

B rows, T time, V vocabulary
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llm.config.errors import Refused
from llm.data.batches import mix
from llm.generate.reader import Reader
from llm.model.transformer import Transformer


def pick(
    logits_BV: Tensor,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
    allowed_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One id a row from softmax(logits / temperature) over the `top_k` largest; at 0 the largest.

    Top-k comes first: over 50,304 ids it makes softmax and draw six times cheaper.

    Args:
        allowed_V: which ids may be drawn, None for all
    Returns: ids (B,) and the probability that the model itself gave each, at temperature 1 and
        over all ids (B,).
    """
    logits_BV = logits_BV.float()
    values_BK, ids_BK = logits_BV, None
    if allowed_V is not None:
        values_BK = logits_BV.masked_fill(~allowed_V, -math.inf)
    if temperature == 0:
        ids_B1 = values_BK.argmax(-1, keepdim=True)
    else:
        if top_k and top_k < logits_BV.shape[1]:
            values_BK, ids_BK = values_BK.topk(top_k)
        chosen_B1 = torch.multinomial((values_BK / temperature).softmax(-1), 1, generator=generator)
        ids_B1 = chosen_B1 if ids_BK is None else ids_BK.gather(1, chosen_B1)
    log_z_B1 = logits_BV.logsumexp(-1, keepdim=True)
    return ids_B1[:, 0], (logits_BV.gather(1, ids_B1) - log_z_B1).exp()[:, 0]


def uniform(key: int, place: int) -> float:
    """A number in [0, 1), a function of a row's key and of the place that is drawn for."""
    return (mix(key, place) >> 11) / 2**53


def draw(
    logits_RV: Tensor,
    settings: Sequence[tuple[float, int | None, float | None]],
    uniform_R: Sequence[float],
) -> Tensor:
    """An id for each row (R,), whoever the other rows are: where its distribution's sum passes u.

    Args:
        logits_RV: float32
        settings: temperature (0: the likeliest id), top_k and top_p of each row. Both are cut in
            order of likelihood, and top_p where the sum of what stands before reaches it
    """
    ids_R = torch.empty(len(settings), dtype=torch.int64, device=logits_RV.device)
    groups: dict[tuple[float, int | None, float | None], list[int]] = {}
    for row, setting in enumerate(settings):
        groups.setdefault(setting, []).append(row)
    for (temperature, top_k, top_p), rows in groups.items():
        values_NK = logits_RV if len(rows) == len(settings) else logits_RV[rows]
        if temperature == 0:
            ids_R[rows] = values_NK.argmax(-1)
            continue
        k = min(top_k or values_NK.shape[1], values_NK.shape[1])
        order_NK = None
        if k < values_NK.shape[1] or top_p is not None:
            values_NK, order_NK = values_NK.topk(k)
        sums_NK = (values_NK / temperature).softmax(-1, dtype=torch.float64).cumsum(-1)
        if top_p is not None:
            kept_N1 = 1 + (sums_NK[:, :-1] < top_p).sum(-1, keepdim=True)
            sums_NK = sums_NK.minimum(sums_NK.gather(1, kept_N1 - 1))
        u_N1 = torch.tensor([[uniform_R[row]] for row in rows], device=sums_NK.device)
        place_N1 = torch.searchsorted(sums_NK, u_N1.double() * sums_NK[:, -1:], right=True)
        place_N1 = place_N1.clamp_max(k - 1)
        ids_R[rows] = (place_N1 if order_NK is None else order_NK.gather(1, place_N1))[:, 0]
    return ids_R


def newer_half(context: list[int], max_len: int) -> list[int]:
    """What is kept of a full context unless somebody knows better."""
    return context[-max(1, max_len // 2) :]


def check_length(prompt: list[int], max_len: int) -> None:
    """Refuse a prompt of more than `max_len` tokens."""
    if len(prompt) > max_len:
        raise Refused(
            f"the prompt has {len(prompt)} tokens, more than the {max_len} that the model reads at "
            "once (model.max_seq_len); shorten it"
        )


@torch.inference_mode()
def stream(
    model: Transformer,
    prompt: list[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
    *,
    reader: Reader | None = None,
    shorten: Callable[[list[int], int], list[int]] = newer_half,
    allowed_V: Tensor | None = None,
) -> Iterator[tuple[int, float]]:
    """Continue `prompt` one id at a time: (id, the model's probability of it).

    Args:
        prompt: at least one id, and no more than the model's context holds
        reader: one that has read the beginning of `prompt` already, if there is one
        shorten: what is kept of a context that is full, given that context and the most ids that
            fit; it is read again from there
        allowed_V: which ids may be drawn, None for all
    Raises:
        Refused: the prompt is too long
    """
    reader = reader or Reader(model)
    check_length(prompt, reader.max_len)
    context = list(prompt)
    if allowed_V is not None:
        allowed_V = allowed_V.to(model.embedding.device)
    for _ in range(max_tokens):
        if len(context) > reader.max_len:
            context = shorten(context, reader.max_len)
        logits_BV = reader.read(context)
        ids, probabilities = pick(logits_BV, temperature, top_k, generator, allowed_V)
        token = int(ids[0])
        context.append(token)
        yield token, float(probabilities[0])


@torch.inference_mode()
def sample_rows(
    model: Transformer,
    prompt: list[int],
    stop: int,
    count: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
    allowed_V: Tensor | None = None,
) -> list[list[int]]:
    """`count` texts that go on from `prompt`, each until the id `stop`.

    One that is not over at the end of the model's context is cut there.
    """
    if allowed_V is not None:
        allowed_V = allowed_V.to(model.embedding.device)
    cache = model.cache(count, model.max_seq_len)
    ids_BT = torch.tensor(prompt, device=model.embedding.device).expand(count, -1)
    rows: list[list[int]] = [[] for _ in range(count)]
    going = [True] * count
    for _ in range(model.max_seq_len - len(prompt) + 1):
        output = model(ids_BT, cache=cache, last_only=True)
        assert output.logits_BTV is not None
        ids_B, _ = pick(output.logits_BTV[:, -1], temperature, top_k, generator, allowed_V)
        ids_BT = ids_B[:, None]
        for i, token in enumerate(ids_B.tolist()):
            going[i] = going[i] and token != stop
            if going[i]:
                rows[i].append(token)
        if not any(going):
            break
    return rows
