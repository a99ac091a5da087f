"""One call of the model as every part of it sees it.

B batch, T time
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What attention, position encoding, feed-forward part and router may know of a call.

    tokens_BT: ids
    index_T: place in the row, from 0: (T,), or (B, T) where a cache holds rows of unlike lengths
    position_T: place within the own text, what position encodings count: (T,) or (B, T)
    start_BT: place at which the token's own text begins (B, T), where several documents share a
        row; None where every row is one text from 0 on
    real_BT: False for padding, which no router, load or balance loss sees; None: all real
    cache: keys and values of the tokens before these (`llm.model.cache.KVCache`); None where all
        tokens of a text are here
    extras: further tensors by name, for parts that ask for them
    memo: masks of this call, which many layers share
    """

    tokens_BT: Tensor
    index_T: Tensor
    position_T: Tensor
    start_BT: Tensor | None = None
    real_BT: Tensor | None = None
    cache: Any = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    memo: dict[Hashable, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tokens_BT: Tensor,
        *,
        document_ids_BT: Tensor | None = None,
        real_BT: Tensor | None = None,
        cache: Any = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> "Context":
        """The context of these tokens: of documents (runs of equal ids), or behind a cache."""
        t, device = tokens_BT.shape[1], tokens_BT.device
        if cache is not None:
            index_T, real_BT = cache.index(t, device), cache.real(t, device)
            return cls(tokens_BT, index_T, index_T, None, real_BT, cache, extras or {})
        index_T = torch.arange(t, device=device)
        start_BT = None
        if document_ids_BT is not None:
            begins_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
            begins_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
            start_BT = (index_T * begins_BT).cummax(1).values
        position_T = index_T if start_BT is None else index_T - start_BT
        return cls(tokens_BT, index_T, position_T, start_BT, real_BT, None, extras or {})

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returned when a layer first asked for `key`."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]
