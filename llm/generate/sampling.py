"""Sampling with a key-value cache.

B rows, T time, V vocabulary
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from llm.model.transformer import Transformer


def pick(
    logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One id a row from softmax(logits / temperature) over the `top_k` largest.

    Top-k comes first: over 50,304 ids it makes softmax and draw six times cheaper.

    Returns: ids (B,) and the probability that the model itself gave each, at temperature 1 and
        over all ids (B,).
    """
    logits_BV = logits_BV.float()
    k = min(top_k or logits_BV.shape[1], logits_BV.shape[1])
    values_BK, ids_BK = logits_BV.topk(k) if k < logits_BV.shape[1] else (logits_BV, None)
    chosen_B1 = torch.multinomial((values_BK / temperature).softmax(-1), 1, generator=generator)
    ids_B1 = chosen_B1 if ids_BK is None else ids_BK.gather(1, chosen_B1)
    log_z_B1 = logits_BV.logsumexp(-1, keepdim=True)
    return ids_B1[:, 0], (logits_BV.gather(1, ids_B1) - log_z_B1).exp()[:, 0]


@torch.inference_mode()
def stream(
    model: Transformer,
    prompt: list[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Iterator[tuple[int, float]]:
    """Continue `prompt` one id at a time: (id, the model's probability of it).

    Once the context is full, the older half of it is forgotten and the rest read again.

    Args:
        prompt: at least one id
    """
    device = model.embedding.device
    context = list(prompt[-(model.max_seq_len - 1) :])
    cache, unread = model.cache(1, model.max_seq_len), context
    for _ in range(max_tokens):
        if cache.length + len(unread) > model.max_seq_len:
            context = context[-model.max_seq_len // 2 :]
            cache, unread = model.cache(1, model.max_seq_len), context
        output = model(torch.tensor([unread], device=device), cache=cache)
        assert output.logits_BTV is not None
        ids, probabilities = pick(output.logits_BTV[:, -1], temperature, top_k, generator)
        token = int(ids[0])
        context = [*context, token]
        unread = [token]
        yield token, float(probabilities[0])


@torch.inference_mode()
def sample_rows(
    model: Transformer,
    start: int,
    count: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> list[list[int]]:
    """`count` documents, each begun by the id `start` and ended by its next occurrence.

    A document that is not over after `max_tokens`, or at the end of the model's context, is cut
    there.
    """
    max_tokens = min(max_tokens, model.max_seq_len)
    cache = model.cache(count, max_tokens)
    ids_B = torch.full((count,), start, device=model.embedding.device)
    rows: list[list[int]] = [[] for _ in range(count)]
    going = [True] * count
    for _ in range(max_tokens):
        output = model(ids_B[:, None], cache=cache)
        assert output.logits_BTV is not None
        ids_B, _ = pick(output.logits_BTV[:, -1], temperature, top_k, generator)
        for i, token in enumerate(ids_B.tolist()):
            going[i] = going[i] and token != start
            if going[i]:
                rows[i].append(token)
        if not any(going):
            break
    return rows
