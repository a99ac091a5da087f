"""Causal multi-head attention.

B batch, T new positions, S all positions, D model width, H heads, C channels of a head
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers.linear import Linear
from llm.layers.noise import Dropout
from llm.layers.norm import RMSNorm
from llm.model.cache import KVCache
from llm.model.position import Position

QKNorm = Literal["none", "head"]


class Attention(nn.Module):
    """softmax(Q Kᵀ / √C) V per head, each position seeing itself and the past (Vaswani 2017).

    With `n_kv_heads` below `n_heads`, groups of query heads share keys and values (GQA). With
    `qk_norm` "head", queries and keys of each head are RMS-normalised before they are turned
    (Qwen3): logits cannot grow without bound, and larger learning rates hold.

    Shapes: (B, T, D) → (B, T, D)
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        bias: bool,
        dropout: float,
        init_std: float,
        residual_std: float,
        qk_norm: QKNorm,
        norm_eps: float,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, d_model // n_heads
        self.dropout = Dropout(dropout)
        width = n_heads * self.head_dim
        kv_width = n_kv_heads * self.head_dim
        self.query = Linear(d_model, width, init_std, bias)
        self.key = Linear(d_model, kv_width, init_std, bias)
        self.value = Linear(d_model, kv_width, init_std, bias)
        self.out = Linear(width, d_model, residual_std, bias)
        normed = qk_norm == "head"
        self.query_norm = RMSNorm(self.head_dim, norm_eps) if normed else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, norm_eps) if normed else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        positions_T: Tensor,
        position: Position,
        mask_BTS: Tensor | None,
        layer: int,
        cache: KVCache | None,
    ) -> Tensor:
        q_BHTC = self.query_norm(self._heads(self.query(x_BTD), self.n_heads))
        k_BHTC = self.key_norm(self._heads(self.key(x_BTD), self.n_kv_heads))
        q_BHTC = position.rotate(q_BHTC, positions_T)
        k_BHTC = position.rotate(k_BHTC, positions_T)
        v_BHTC = self._heads(self.value(x_BTD), self.n_kv_heads)
        if cache is not None:
            k_BHTC, v_BHTC = cache.append(layer, k_BHTC, v_BHTC)
        if self.training and self.dropout.p:
            y_BHTC = self._with_dropout(q_BHTC, k_BHTC, v_BHTC, mask_BTS)
        else:
            y_BHTC = F.scaled_dot_product_attention(
                q_BHTC,
                k_BHTC,
                v_BHTC,
                attn_mask=None if mask_BTS is None else mask_BTS.unsqueeze(1),
                is_causal=mask_BTS is None and q_BHTC.shape[2] > 1,
                enable_gqa=self.n_kv_heads < self.n_heads,
            )
        return self.out(y_BHTC.transpose(1, 2).flatten(2))

    def _with_dropout(
        self, q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor, mask_BTS: Tensor | None
    ) -> Tensor:
        """The same, some weights left out: the fused kernels draw by batch and not by row."""
        groups = self.n_heads // self.n_kv_heads
        k_BHTC, v_BHTC = (x.repeat_interleave(groups, 1) for x in (k_BHTC, v_BHTC))
        scores_BHTS = q_BHTC @ k_BHTC.mT * self.head_dim**-0.5
        if mask_BTS is None:
            t, s = scores_BHTS.shape[-2:]
            mask_BTS = torch.ones(1, t, s, dtype=torch.bool, device=q_BHTC.device).tril(s - t)
        scores_BHTS = scores_BHTS.masked_fill(~mask_BTS.unsqueeze(1), -torch.inf)
        weights_BHTS = scores_BHTS.softmax(-1).to(v_BHTC.dtype)
        return self.dropout(weights_BHTS) @ v_BHTC

    def _heads(self, x_BTD: Tensor, n: int) -> Tensor:
        return x_BTD.unflatten(2, (n, self.head_dim)).transpose(1, 2)


def causal_mask(
    positions_T: Tensor, total: int, document_ids_BT: Tensor | None, cached: bool
) -> Tensor | None:
    """Which of `total` positions each new one sees: (B or 1, T, S), or None for plain causal.

    None also where one new position sees everything. With document ids, nothing is seen across
    documents (training only: a cache does not keep them).
    """
    t = positions_T.shape[0]
    if document_ids_BT is None and (t == total or t == 1):
        return None
    past_TS = torch.arange(total, device=positions_T.device) <= positions_T[:, None]
    if document_ids_BT is None:
        return past_TS.unsqueeze(0)
    if cached:
        raise ValueError("document_ids_BT and a cache do not go together")
    return past_TS & (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])
