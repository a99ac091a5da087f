"""Random numbers that belong to a row of the batch, and dropout made of them.

A generator hands its numbers to whoever comes first, so a batch that is split over micro-steps or
over machines draws others than the whole one. Here each number is a function of its row's key, of
the place in the model that asks, and of its index (a counter-based generator; Salmon et al. 2011):
no state, the same on every device, again the same where a forward pass is repeated in the backward
one, and no barrier to a compiler.

B rows, N numbers of a row
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Rows:
    """The keys of the rows that the model is working on; none: the global generator draws."""

    keys_B2: Tensor | None = None


_rows = _Rows()


@contextmanager
def keyed(keys_B2: Tensor) -> Iterator[None]:
    """Within, `Noise` draws for rows of these keys: (B, 2) int32. The backward pass belongs in it,
    for a forward pass that is repeated there."""
    before, _rows.keys_B2 = _rows.keys_B2, keys_B2
    try:
        yield
    finally:
        _rows.keys_B2 = before


class Noise(nn.Module):
    """Random numbers of one place in the model, which `number_places` tells from the others."""

    #: What tells them: a tensor, since a compiler makes a graph for every number that it meets, and
    #: blocks which differ in nothing else share one. No part of a checkpoint.
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros((), dtype=torch.int32), persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """Independent float32 from U[0, 1) in the shape of `like`, whose rows come first: (B, …)
        or (B·T, …)."""
        return (self._bits(like).bitwise_right_shift_(8) & 0xFFFFFF) * 2.0**-24

    def keep(self, like: Tensor, share: float) -> Tensor:
        """True with probability `share`, in the shape of `like`."""
        return self._bits(like) < round(share * 2**32) - 2**31

    def _bits(self, like: Tensor) -> Tensor:
        keys_B2 = _rows.keys_B2
        if keys_B2 is None:
            edges = (-(2**31), 2**31)
            return torch.randint(*edges, like.shape, dtype=torch.int32, device=like.device)
        numbers = torch.arange(like.numel() // len(keys_B2), dtype=torch.int32, device=like.device)
        # Two rounds of multiply and shift with half of the key before each, so that rows are not
        # the same sequence begun at other points. Shifts of int32 copy the sign: the mask cuts it.
        key_B2 = keys_B2 ^ self.place
        x_BN = (numbers * _signed(0x9E3779B1)) ^ key_B2[:, :1]
        x_BN ^= (x_BN >> 16) & 0xFFFF
        x_BN *= _signed(0x7FEB352D)
        x_BN ^= (x_BN >> 15) & 0x1FFFF
        x_BN ^= key_B2[:, 1:]
        x_BN *= _signed(0x846CA68B)
        x_BN ^= (x_BN >> 16) & 0xFFFF
        x_BN *= _signed(0x7FEB352D)
        x_BN ^= (x_BN >> 15) & 0x1FFFF
        return x_BN.view(like.shape)


class Dropout(nn.Module):
    """Zero with probability `p` and 1 / (1 − p) of the value otherwise, in training."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.noise = Noise()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose first dimension counts rows, or tokens row by row."""
        if not self.training or not self.p:
            return x
        return (x / (1 - self.p)).masked_fill(~self.noise.keep(x, 1 - self.p), 0.0)


def number_places(model: nn.Module) -> None:
    """Give each `Noise` of `model` a number of its own, in the order of its modules."""
    noises = (module for module in model.modules() if isinstance(module, Noise))
    for number, noise in enumerate(noises, start=1):
        noise.place.fill_(_signed(number * 0x9E3779B9))


def _signed(number: int) -> int:
    """The int32 with the lowest 32 bits of `number`."""
    number &= 2**32 - 1
    return number - 2**32 if number >= 2**31 else number
