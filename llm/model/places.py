"""Where tokens stand, and which of them a query sees.

B batch, T queries, S keys, H heads
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: The place of a key that is not there: no query stands behind it.
NOWHERE = 2**30


@dataclass(frozen=True)
class Places:
    """Where the tokens of one call stand in their rows.

    index_T: place in the row, from 0, those in a cache counted
    start_BT: place at which the token's own text begins: (B, T) where several documents share a
        row, (B, 1) where rows are padded at the left, None where every row is one text from 0 on
    positions: place within the own text, what position encodings get: (T,) or (B, T)
    first: the place of the first of them, as a number
    memo: masks of this call, which many layers share
    """

    index_T: Tensor
    start_BT: Tensor | None
    positions: Tensor
    first: int
    memo: dict[Hashable, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        first: int,
        length: int,
        device: torch.device,
        document_ids_BT: Tensor | None = None,
        padding_B: Tensor | None = None,
    ) -> "Places":
        """The places from `first` on, of documents (runs of equal ids) or of padded rows."""
        index_T = torch.arange(first, first + length, device=device)
        start_BT = None
        if document_ids_BT is not None:
            begins_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
            begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
            start_BT = (index_T * begins_BT).cummax(1).values
        elif padding_B is not None:
            start_BT = padding_B[:, None]
        positions = index_T if start_BT is None else (index_T - start_BT).clamp_min(0)
        return cls(index_T, start_BT, positions, first)

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returned when a layer first asked for `key`."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


def mask(
    query_T: Tensor,
    key_S: Tensor,
    start_T: Tensor | None,
    window: int | None,
    n_sinks: int,
    slopes_H: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """What is added to the scores of queries and keys at these places: 0 or −∞, ALiBi's slopes.

    t sees s iff both are of one text, 0 ≤ t − s, and either t − s < window or s is among the first
    `n_sinks` of the text. A query always sees itself, so that rows of padding hold numbers.

    Args:
        query_T, key_S: places below 2^30, with any dimensions of a batch before
        start_T: where each query's text begins, None where all begin at 0
        slopes_H: ALiBi's, None for none
        dtype: of the queries
    Returns: (…, 1 or H, T, S)
    """
    query_T1, key_1S = query_T.int()[..., :, None], key_S.int()[..., None, :]
    distance_TS = query_T1 - key_1S
    seen_TS = distance_TS >= 0
    place_TS = key_1S  # of a key in the query's text, from 0
    if start_T is not None:
        place_TS = key_1S - start_T.int()[..., :, None]
        seen_TS = seen_TS & (place_TS >= 0)
    if window is not None:
        near_TS = distance_TS < window
        seen_TS = seen_TS & (near_TS | (place_TS < n_sinks) if n_sinks else near_TS)
    if start_T is not None:
        seen_TS = seen_TS | (distance_TS == 0)
    seen_HTS = seen_TS.unsqueeze(-3)
    # One type for all: a float32 mask on float64 queries gives wrong numbers without a word on CPU
    # (PyTorch 2.13), and a bool one is turned into this by every layer anew.
    if slopes_H is None:
        return torch.zeros((), dtype=dtype, device=seen_HTS.device).where(seen_HTS, -torch.inf)
    bias_HTS = -slopes_H[:, None, None] * distance_TS.unsqueeze(-3)
    return bias_HTS.to(dtype).where(seen_HTS, -torch.inf)
