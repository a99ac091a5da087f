"""Keys and values of the tokens read so far, so that each new token is computed alone.

L layers, B batch, H key-value heads, S cached positions, T new positions, C channels of a head
"""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values; all rows have the same length.

    Args:
        n_layers, batch_size, n_heads, max_len, head_dim: its shape
    Raises:
        ValueError: from `append`, where more than `max_len` positions would be held, or other rows
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        max_len: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (n_layers, batch_size, n_heads, max_len, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.max_len = max_len
        self.length = 0  # positions held by every layer; `advance` moves it

    def append(self, layer: int, k_BHTC: Tensor, v_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer and return all of it: two (B, H, S + T, C)."""
        end = self.length + k_BHTC.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} positions, not {end}")
        if k_BHTC.shape[0] != self.keys.shape[1]:  # one row would be copied to all
            raise ValueError(f"the cache has {self.keys.shape[1]} rows, not {k_BHTC.shape[0]}")
        self.keys[layer, :, :, self.length : end] = k_BHTC
        self.values[layer, :, :, self.length : end] = v_BHTC
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n: int) -> None:
        """Count `n` new positions as read, once every layer has stored them."""
        self.length += n
