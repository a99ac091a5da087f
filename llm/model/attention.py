"""Causal multi-head attention.

B batch, T new positions, S positions attended to, D model width, H heads, G key-value heads,
C channels of a head
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.context import Context
from llm.layers.cross_entropy import soft_capped
from llm.layers.linear import Linear
from llm.layers.noise import Dropout
from llm.layers.norm import RMSNorm
from llm.model.cache import LayerCache, empty_layer
from llm.model.cached import attend_to_cache
from llm.model.mask import mask
from llm.model.position import Position
from llm.model.windowed import attend_in_blocks, block_mask

QKNorm = Literal["none", "head", "projection"]


@dataclass(frozen=True)
class AttentionShape:
    """What the transformer tells each of its attention parts.

    window: t sees s iff 0 ≤ t − s < window; None for the whole past
    n_sinks: so many first tokens of a text are seen through every window (Xiao et al. 2023)
    qk_norm: RMS norm of queries and keys before they are turned: of each "head" (Qwen3), or of the
        whole "projection" before it is split into heads (OLMoE)
    scale: of the scores; None for 1/√C
    softcap: c of c · tanh(score/c), which bounds scores (Gemma 2); None for none
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    bias: bool
    dropout: float
    init_std: float
    residual_std: float
    qk_norm: QKNorm
    norm_eps: float
    window: int | None = None
    n_sinks: int = 0
    scale: float | None = None
    softcap: float | None = None


class CausalAttention(nn.Module):
    """softmax(Q Kᵀ · scale) V per head, each position seeing itself and the past.

    What the options of `model/attention` have in common: windows, sinks, soft-cap and dropout. An
    option says how queries, keys and values are made (`project`) and what its cache holds (`cache`,
    `read`).

    Shapes: (B, T, D) → (B, T, D)
    """

    out: Linear

    def __init__(self, shape: AttentionShape):
        super().__init__()
        self.shape, self.n_heads, self.n_kv_heads = shape, shape.n_heads, shape.n_kv_heads
        self.head_dim, self.dropout = shape.head_dim, Dropout(shape.dropout)
        self.window, self.n_sinks = shape.window, shape.n_sinks

    def forward(
        self,
        x_BTD: Tensor,
        context: Context,
        position: Position,
        layer: LayerCache | None = None,
    ) -> Tensor:
        if layer is not None:
            y_BHTC = self.read(x_BTD, context, position, layer)
            return self.out(y_BHTC.transpose(1, 2).flatten(2))
        q_BHTC, k_BGTC, v_BGTC = self.project(x_BTD, context, position)
        seen = self.mask(context, position)
        if self.window is not None and x_BTD.shape[1] > self.window:
            assert seen is not None
            window, sinks = self.window, self.n_sinks
            y_BHTC = attend_in_blocks(
                q_BHTC, k_BGTC, v_BGTC, context, window, sinks, seen, self._attend
            )
        else:
            y_BHTC = self._attend(q_BHTC, k_BGTC, v_BGTC, seen)
        return self.out(y_BHTC.transpose(1, 2).flatten(2))

    def project(
        self, x_BTD: Tensor, context: Context, position: Position
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, C), keys (B, G, T, C) and values (B, G, T, V), turned by position."""
        raise NotImplementedError

    def read(
        self, x_BTD: Tensor, context: Context, position: Position, layer: LayerCache
    ) -> Tensor:
        """The same attention behind what `layer` holds, which it stores the new places in."""
        q_BHTC, k_BGTC, v_BGTC = self.project(x_BTD, context, position)
        layer.write(context, k_BGTC, v_BGTC)
        k_NBGKC, v_NBGKV = layer.held(context.cache)
        return self._attend_to_cache(q_BHTC, k_NBGKC, v_NBGKV, context, position)

    def cache(self, rows: int, max_len: int) -> LayerCache:
        """An empty cache of this layer, on the device and in the type of its weights."""
        raise NotImplementedError

    def channels_met(self, seq_len: int) -> float:
        """Channels of keys that a query of a sequence meets, over all heads, on average.

        Each costs two products forward (its score, its value) and four backward.
        """
        return self.n_heads * self.head_dim * self._keys_met(seq_len)

    def _keys_met(self, seq_len: int) -> float:
        """A query sees itself as half a key, so T/2 with the whole past, as is customary."""
        window = min(self.window or seq_len, seq_len)
        in_window = window * (window + 1) / 2 + window * (seq_len - window)
        sinks = min(self.n_sinks, seq_len - window)
        through = sinks * (sinks + 1) / 2 + sinks * (seq_len - window - sinks)
        return (in_window + through) / seq_len - 0.5

    def _attend_to_cache(
        self,
        q_BHTC: Tensor,
        k_NBGKC: Tensor,
        v_NBGKV: Tensor,
        context: Context,
        position: Position,
    ) -> Tensor:
        return attend_to_cache(
            q_BHTC,
            k_NBGKC,
            v_NBGKV,
            context,
            scale=self.shape.scale or self.head_dim**-0.5,
            softcap=self.shape.softcap,
            window=self.window,
            n_sinks=self.n_sinks,
            bias=position.bias,
        )

    def mask(self, context: Context, position: Position) -> Tensor | None:
        """What a call without cache adds to its scores, None where they are causal as they stand.

        Layers that see alike share one, kept in `context`. Whoever recomputes or compiles blocks
        asks before them: there a block may not write what outlives it.
        """
        device, rows = context.index_T.device.type, len(context.tokens_BT)
        dtype = self.out.weight.dtype
        if torch.is_autocast_enabled(device):  # what the queries will be, or be cast to
            dtype = torch.get_autocast_dtype(device)
        window, sinks, bias = self.window, self.n_sinks, position.bias
        if window is not None and len(context.index_T) > window:
            return context.once(
                window, partial(block_mask, context, rows, window, sinks, bias, dtype)
            )
        index_1T, start_BT = context.index_T[None], context.start_BT
        if not self._explicit and start_BT is None and not position.biased:
            return None
        return context.once(None, partial(mask, index_1T, index_1T, start_BT, None, 0, bias, dtype))

    @property
    def _explicit(self) -> bool:
        """Whether weights are written out: the fused kernels know no soft-cap, and their dropout
        draws for the batch and not for each row."""
        return self.shape.softcap is not None or (self.training and self.dropout.p > 0)

    def _attend(
        self, q_BHTC: Tensor, k_BGSC: Tensor, v_BGSC: Tensor, mask_BHTS: Tensor | None
    ) -> Tensor:
        """softmax(scores) V, causal where there is no mask."""
        grouped = self.n_kv_heads < self.n_heads
        if grouped and (self._explicit or (mask_BHTS is not None and q_BHTC.is_cuda)):
            # Of CUDA's kernels, flash attention takes no mask and the memory-efficient one no
            # groups: with both, most GPUs would write out all scores (PyTorch 2.13).
            groups = self.n_heads // self.n_kv_heads
            k_BGSC, v_BGSC = (x.repeat_interleave(groups, 1) for x in (k_BGSC, v_BGSC))
            grouped = False
        if not self._explicit:
            return F.scaled_dot_product_attention(
                q_BHTC,
                k_BGSC,
                v_BGSC,
                attn_mask=mask_BHTS,
                is_causal=mask_BHTS is None and q_BHTC.shape[2] > 1,
                scale=self.shape.scale,
                enable_gqa=grouped,
            )
        assert mask_BHTS is not None
        scale = self.shape.scale or self.head_dim**-0.5
        scores_BHTS = (q_BHTC * scale) @ k_BGSC.mT
        scores_BHTS = scores_BHTS.to(torch.promote_types(scores_BHTS.dtype, torch.float32))
        scores_BHTS = soft_capped(scores_BHTS, self.shape.softcap) + mask_BHTS
        weights_BHTS = self.dropout(scores_BHTS.softmax(-1))
        return weights_BHTS.to(v_BGSC.dtype) @ v_BGSC


class Attention(CausalAttention):
    """Multi-head attention (Vaswani et al. 2017).

    With `n_kv_heads` below `n_heads`, groups of query heads share keys and values (GQA).
    """

    def __init__(self, shape: AttentionShape):
        super().__init__(shape)
        width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        d_model, init_std, bias = shape.d_model, shape.init_std, shape.bias
        self.query = Linear(d_model, width, init_std, bias)
        self.key = Linear(d_model, kv_width, init_std, bias)
        self.value = Linear(d_model, kv_width, init_std, bias)
        self.out = Linear(width, d_model, shape.residual_std, bias)

        def norm(projected: int) -> nn.Module:
            widths = {"none": 0, "head": self.head_dim, "projection": projected}
            normed = widths[shape.qk_norm]
            return RMSNorm(normed, shape.norm_eps) if normed else nn.Identity()

        self.query_norm, self.key_norm = norm(width), norm(kv_width)

    def project(
        self, x_BTD: Tensor, context: Context, position: Position
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_BHTC = self._heads(self.query(x_BTD), self.n_heads, self.query_norm)
        k_BGTC = self._heads(self.key(x_BTD), self.n_kv_heads, self.key_norm)
        v_BGTC = self._heads(self.value(x_BTD), self.n_kv_heads)
        return position.rotate(q_BHTC, context), position.rotate(k_BGTC, context), v_BGTC

    def cache(self, rows: int, max_len: int) -> LayerCache:
        c = self.head_dim
        return empty_layer(rows, max_len, self.n_kv_heads, c, c, like=self.key.weight)

    def _heads(self, x_BTD: Tensor, n: int, norm: nn.Module | None = None) -> Tensor:
        if norm is not None and self.shape.qk_norm == "projection":
            x_BTD = norm(x_BTD)
        x_BHTC = x_BTD.unflatten(2, (n, self.head_dim)).transpose(1, 2)
        return norm(x_BHTC) if norm is not None and self.shape.qk_norm == "head" else x_BHTC
