"""Drawing ids: a function of a row's logits, its settings, its key and its place, nothing else.

R rows, V vocabulary, N rows of equal settings, K ids that may be drawn
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm.data.batches import mix


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
