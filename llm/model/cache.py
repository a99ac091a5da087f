"""Keys and values of the tokens read so far, so that each new token is computed alone.

B batch, G key-value heads, S places held, T new places, C channels of a head, J sinks, R places of
a ring
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm.model.mask import NOWHERE


@dataclass(frozen=True)
class CacheShape:
    """What every layer of a cache has in common."""

    batch_size: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def empty(self, places: int, heads: int, channels: int) -> Tensor:
        """An empty (B, G, places, C)."""
        shape = (self.batch_size, heads, places, channels)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)


class LayerCache(Protocol):
    """What one layer remembers of the tokens read so far. Its attention makes and fills it."""

    def remembers(self, length: int) -> bool:
        """Whether reading can go on behind the first `length` places."""

    def append(self, k_BGTC: Tensor, v_BGTC: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Store places `first` …; return what these may see, two (B, G, S, C), and its places."""


class FullLayer:
    """Every place of one layer, in order. `held`: heads and channels of keys, and of values."""

    def __init__(self, shape: CacheShape, held: tuple[int, int], max_len: int):
        self.k_BGSC, self.v_BGSC = (shape.empty(max_len, *held) for _ in range(2))

    def append(self, k_BGTC: Tensor, v_BGTC: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Store places `first` … and return all: two (B, G, first + T, C), and their places."""
        end = first + k_BGTC.shape[2]
        self.k_BGSC[:, :, first:end] = k_BGTC
        self.v_BGSC[:, :, first:end] = v_BGTC
        place_S = torch.arange(end, device=k_BGTC.device)
        return self.k_BGSC[:, :, :end], self.v_BGSC[:, :, :end], place_S

    def remembers(self, length: int) -> bool:
        """Whether reading can go on behind the first `length` places."""
        return True


class RollingLayer:
    """The sinks and the last `window` places of one layer: a ring in which the oldest goes.

    Memory does not grow with what was read. The sinks stand before the ring in one buffer, so that
    a single token attends to it without a copy.

    Args:
        padding_B: places before each row's text, None where there are none
    """

    def __init__(
        self,
        shape: CacheShape,
        held: tuple[int, int],
        window: int,
        n_sinks: int,
        max_len: int | None,
        padding_B: Tensor | None,
    ):
        self.window, self.n_sinks = window, n_sinks
        self.ring = window if max_len is None else min(window, max_len)
        self.k_BGSC, self.v_BGSC = (shape.empty(n_sinks + self.ring, *held) for _ in range(2))
        sink_J = torch.arange(n_sinks, device=shape.device)
        self.sink_XJ = sink_J[None] if padding_B is None else padding_B[:, None] + sink_J
        self.last_sink = n_sinks + (0 if padding_B is None else int(padding_B.max()))
        self.end = 0  # one behind the last place that was ever stored

    def remembers(self, length: int) -> bool:
        """Whether the window before `length` is still there: always up to one place back."""
        oldest_held = self.end - self.ring
        return length == 0 or oldest_held <= 0 or length - self.window + 1 >= oldest_held

    def append(self, k_BGTC: Tensor, v_BGTC: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Store places `first` …; return what these may see: two (B, G, S, C), and places (…, S).

        Slots that hold nothing of use, such as a sink that is still in the window, are NOWHERE.
        """
        t = k_BGTC.shape[2]
        if t == 1:  # nothing that it needs is overwritten: the ring holds a whole window
            self._store(k_BGTC, v_BGTC, first)
            used = self.n_sinks + min(first + 1, self.ring)
            places = self._places(first, first + 1)[:, :used]
            return self.k_BGSC[:, :, :used], self.v_BGSC[:, :, :used], places
        new_T = torch.arange(first, first + t, device=k_BGTC.device)
        before_XS = self._places(first, first)
        places = torch.cat([before_XS, new_T.expand(before_XS.shape[0], -1)], 1)
        k_BGSC = torch.cat([self.k_BGSC.to(k_BGTC.dtype), k_BGTC], 2)
        v_BGSC = torch.cat([self.v_BGSC.to(v_BGTC.dtype), v_BGTC], 2)
        self._store(k_BGTC, v_BGTC, first)
        return k_BGSC, v_BGSC, places

    def _places(self, first: int, end: int) -> Tensor:
        """The place that each slot holds when `end` are stored and `first` is read: (1 or B, S).

        Older than the window of `first` are sinks only, and newer ones are found in the ring.
        """
        oldest = first - self.window + 1
        slot_R = torch.arange(self.ring, device=self.k_BGSC.device)
        place_R = end - 1 - (end - 1 - slot_R) % self.ring
        place_R = place_R.where((place_R >= max(oldest, 0)) & (place_R < end), NOWHERE)
        sink_XJ = self.sink_XJ.where(self.sink_XJ < oldest, NOWHERE)
        return torch.cat([sink_XJ, place_R.expand(sink_XJ.shape[0], -1)], 1)

    def _store(self, k_BGTC: Tensor, v_BGTC: Tensor, first: int) -> None:
        t = k_BGTC.shape[2]
        if first < self.last_sink:
            offset_XJ = self.sink_XJ - first
            new_X1J1 = ((offset_XJ >= 0) & (offset_XJ < t))[:, None, :, None]
            where_XJ = offset_XJ.clamp(0, t - 1)
            for held_BGSC, new_BGTC in ((self.k_BGSC, k_BGTC), (self.v_BGSC, v_BGTC)):
                sinks_BGJC = held_BGSC[:, :, : self.n_sinks]
                shape = sinks_BGJC.shape
                found_BGJC = new_BGTC.gather(2, where_XJ[:, None, :, None].expand(shape))
                sinks_BGJC.copy_(torch.where(new_X1J1, found_BGJC.to(sinks_BGJC.dtype), sinks_BGJC))
        kept = min(t, self.ring)
        slot_K = torch.arange(first + t - kept, first + t, device=k_BGTC.device) % self.ring
        self.k_BGSC[:, :, self.n_sinks + slot_K] = k_BGTC[:, :, -kept:].to(self.k_BGSC.dtype)
        self.v_BGSC[:, :, self.n_sinks + slot_K] = v_BGTC[:, :, -kept:].to(self.v_BGSC.dtype)
        self.end = max(self.end, first + t) if first else first + t


class KVCache:
    """Preallocated keys and values of all layers; windowed layers keep their window only.

    All rows have the same length; shorter texts are padded at the left, and `padding` says by how
    much. Padding is never seen, and positions count from the text's own beginning.

    Args:
        shape: the batch
        layers: from the shape and `padding_B` to the cache of each layer
        max_len: places at most, padding counted; None for no end
        padding: places before each row's text, None for none
    Raises:
        ValueError: from `expect`, where more than `max_len` places would be held, or other rows
    """

    def __init__(
        self,
        shape: CacheShape,
        layers: Callable[[Tensor | None], list[LayerCache]],
        max_len: int | None,
        padding: Sequence[int] | Tensor | None = None,
    ):
        self.batch_size, self.max_len = shape.batch_size, max_len
        self.padding_B: Tensor | None = None
        if padding is not None:
            self.padding_B = torch.as_tensor(padding, device=shape.device)
            if self.padding_B.shape != (shape.batch_size,):
                raise ValueError(f"padding is one number for each of {shape.batch_size} rows")
        self.least_padding = 0 if self.padding_B is None else int(self.padding_B.min())
        self.layers = layers(self.padding_B)
        self._length = 0

    @property
    def length(self) -> int:
        """Places that have been read by every layer, padding counted."""
        return self._length

    def expect(self, rows: int, n: int) -> None:
        """Refuse, before anything is stored, `n` more places that do not fit."""
        if self.max_len is not None and self._length + n > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} positions, not {self._length + n}")
        if rows != self.batch_size:  # one row would be copied to all
            raise ValueError(f"the cache has {self.batch_size} rows, not {rows}")
        if not all(layer.remembers(self._length) for layer in self.layers):
            raise ValueError("a call was interrupted; `cut` the cache before going on")

    def advance(self, n: int) -> None:
        """Count `n` new places as read, once every layer has stored them."""
        self._length += n

    def cut(self, length: int) -> int:
        """Forget what stands behind the first `length` places, and say how many are left.

        That is `length`, or 0 where a window has rolled past it: then all is to be read again.
        """
        length = min(length, self._length)
        self._length = length if all(layer.remembers(length) for layer in self.layers) else 0
        return self._length
