"""Keys and values of the tokens read so far, so that each new token is computed alone.

B rows, G key-value heads, N blocks of K = 64 places, T new places, C channels of a head
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm.layers.context import Context

#: Places of a block: attention to a cache sums over blocks (`llm.model.cached`).
BLOCK = 64


class LayerCache:
    """What one layer remembers: tensors (N, B, G, K, C), as its attention wants them."""

    def __init__(self, *tensors: Tensor):
        self.tensors = tensors

    def write(self, context: Context, *new_BGTC: Tensor) -> None:
        """Store the new places of a call's rows behind what each row holds."""
        starts, t = context.cache.starts, new_BGTC[0].shape[2]
        whole = t == BLOCK and len(set(starts)) == 1 and starts[0] % BLOCK == 0
        place_BT = context.index_T.expand(len(starts), t)
        row_B = context.once("row", lambda: torch.arange(len(starts), device=place_BT.device))
        block_BT = context.once("block", lambda: place_BT // BLOCK)
        within_BT = context.once("within", lambda: place_BT % BLOCK)
        for held_NBGKC, added_BGTC in zip(self.held(context.cache), new_BGTC, strict=True):
            if whole:
                held_NBGKC[starts[0] // BLOCK] = added_BGTC
            else:
                added_BTGC = added_BGTC.transpose(1, 2).to(held_NBGKC.dtype)
                held_NBGKC[block_BT, row_B[:, None], :, within_BT] = added_BTGC

    def held(self, cache: "KVCache") -> tuple[Tensor, ...]:
        """The tensors' rows of a call: views (N, B, G, K, C)."""
        return tuple(held_NBGKC[:, cache.begin : cache.end] for held_NBGKC in self.tensors)


class KVCache:
    """Preallocated keys and values of all layers, each row of a length of its own.

    Args:
        layers: what each attention has made
        rows: how many texts there is room for
        max_len: places of a row at most
    Attributes:
        lengths: places that each row holds; whoever shortens one forgets what stood behind
        begin, end: the rows of a call, see `rows`
        least_rows: with how few rows a product may be computed; fewer tokens of a call than that
            are filled up, so that a row's bytes do not depend on how many others there are
    """

    def __init__(self, layers: Sequence[LayerCache], rows: int, max_len: int):
        self.layers, self.max_len, self.lengths = layers, max_len, [0] * rows
        self.begin, self.end, self.least_rows = 0, rows, 1
        self.counts: list[int] | None = None

    def rows(self, begin: int, end: int, counts: list[int] | None = None) -> "KVCache":
        """The same cache for a call with these rows only.

        Args:
            counts: how many tokens of each row are no padding, which stands at its end; None: all
        """
        view = copy.copy(self)
        view.begin, view.end, view.counts = begin, end, counts
        return view

    @property
    def starts(self) -> list[int]:
        """Places that each row of the call holds already."""
        return self.lengths[self.begin : self.end]

    @property
    def length(self) -> int:
        """Places of the longest row of the call."""
        return max(self.starts)

    def index(self, t: int, device: torch.device) -> Tensor:
        """The places of t new tokens: (T,) where all rows are as long, else (B, T)."""
        new_T = torch.arange(t, device=device)
        starts = self.starts
        if len(set(starts)) == 1:
            return new_T + starts[0]
        return torch.tensor(starts, device=device)[:, None] + new_T

    def real(self, t: int, device: torch.device) -> Tensor | None:
        """Which of t new tokens are no padding (B, T); None: all."""
        if self.counts is None or all(count == t for count in self.counts):
            return None
        return torch.arange(t, device=device) < torch.tensor(self.counts, device=device)[:, None]

    def expect(self, rows: int, t: int) -> int:
        """Refuse, before anything is stored, what does not fit; the longest row afterwards."""
        if rows != len(self.starts):  # one row would be copied to all
            raise ValueError(f"the cache has {len(self.starts)} rows, not {rows}")
        longest = max(map(sum, zip(self.starts, self.counts or [t] * rows, strict=True)))
        if longest > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} positions, not {longest}")
        return longest

    def advance(self, t: int) -> None:
        """Count the new places as read, once every layer has stored them."""
        counts = self.counts or [t] * len(self.starts)
        for row, count in enumerate(counts, self.begin):
            self.lengths[row] += count

    def block(self, row: int, n: int) -> list[Tensor]:
        """What a row holds in a block, of all layers: views."""
        return [held_NBGKC[n, row] for layer in self.layers for held_NBGKC in layer.tensors]

    def move(self, source: int, target: int) -> None:
        """Let another row hold what this one does."""
        for n in range(-(-self.lengths[source] // BLOCK)):
            for there, here in zip(self.block(target, n), self.block(source, n), strict=True):
                there.copy_(here)
        self.lengths[target], self.lengths[source] = self.lengths[source], 0


def empty_layer(rows: int, max_len: int, heads: int, *channels: int, like: Tensor) -> LayerCache:
    """A cache of tensors with so many channels each, whole blocks long."""
    blocks = -(-max_len // BLOCK)
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    return LayerCache(*(torch.zeros(blocks, rows, heads, BLOCK, c, **options) for c in channels))
