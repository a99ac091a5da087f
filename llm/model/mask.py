"""Which keys a query sees, and what its position encoding adds to their scores.

T queries, S keys, H heads
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: The place of a key that is not there: no query stands behind it.
NOWHERE = 2**30

#: What a position encoding adds to scores: from places of queries (…, T, 1) and of keys
#: (…, T or 1, S), both within the query's text, to (…, H, T, S); or None for nothing.
Bias = Callable[[Tensor, Tensor], Tensor | None]


def mask(
    query_T: Tensor,
    key_S: Tensor,
    start_T: Tensor | None,
    window: int | None,
    n_sinks: int,
    bias: Bias,
    dtype: torch.dtype,
) -> Tensor:
    """What is added to the scores of queries and keys at these places: −∞, 0, or their bias.

    t sees s iff both are of one text, 0 ≤ t − s, and either t − s < window or s is among the first
    `n_sinks` of the text. A query always sees itself, so that rows of padding hold numbers.

    Args:
        query_T, key_S: places below 2^30, with any dimensions of a batch before
        start_T: where each query's text begins, None where all begin at 0
        dtype: of the queries
    Returns: (…, 1 or H, T, S)
    """
    query_T1, key_1S = query_T.int()[..., :, None], key_S.int()[..., None, :]
    distance_TS = query_T1 - key_1S
    seen_TS = distance_TS >= 0
    own_T1, place_TS = query_T1, key_1S  # of a query and of a key in the query's text, from 0
    if start_T is not None:
        start_T1 = start_T.int()[..., :, None]
        own_T1, place_TS = query_T1 - start_T1, key_1S - start_T1
        seen_TS = seen_TS & (place_TS >= 0)
    if window is not None:
        near_TS = distance_TS < window
        seen_TS = seen_TS & (near_TS | (place_TS < n_sinks) if n_sinks else near_TS)
    if start_T is not None:
        seen_TS = seen_TS | (distance_TS == 0)
    seen_HTS = seen_TS.unsqueeze(-3)
    # One type for all: a float32 mask on float64 queries gives wrong numbers without a word on CPU
    # (PyTorch 2.13), and a bool one is turned into this by every layer anew.
    bias_HTS = bias(own_T1, place_TS)
    if bias_HTS is None:
        return torch.zeros((), dtype=dtype, device=seen_HTS.device).where(seen_HTS, -torch.inf)
    return bias_HTS.to(dtype).where(seen_HTS, -torch.inf)
