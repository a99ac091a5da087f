"""Multi-head latent attention: keys and values of all heads from one short vector per token.

B batch, T time, D model width, H heads, R latent width, N channels of a head without position,
P channels of a head with position, V channels of a value
"""

from dataclasses import replace

import torch
from torch import Tensor

from llm.config.errors import Refused
from llm.config.types import PositiveInt
from llm.layers.context import Context
from llm.layers.linear import Linear
from llm.layers.norm import RMSNorm
from llm.model.attention import AttentionShape, CausalAttention
from llm.model.cache import LayerCache, empty_layer
from llm.model.position import Position


class LatentAttention(CausalAttention):
    """MLA of DeepSeek-V2 (2024, section 2.1) and V3.

    A token's keys and values are linear maps of a latent c = norm(x W_c) of width R, beside one key
    of P channels with position that all heads share. A cache holds these R + P numbers per token;
    reading it, the maps are applied to queries and to what was attended to instead of to every key
    ("absorbed"), which is the same function.

    P is `model.head_dim`. The latents are normalised whatever `model.qk_norm` says, and shared by
    all heads, so `model.n_kv_heads` has no meaning.

    Args:
        kv_lora_rank: R; null for 4 · head_dim
        q_lora_rank: width of a latent of the queries; null for queries straight from x
        qk_nope_head_dim: N; null for head_dim
        v_head_dim: V; null for head_dim
    """

    def __init__(
        self,
        shape: AttentionShape,
        *,
        kv_lora_rank: PositiveInt | None = None,
        q_lora_rank: PositiveInt | None = None,
        qk_nope_head_dim: PositiveInt | None = None,
        v_head_dim: PositiveInt | None = None,
    ):
        if shape.n_kv_heads != shape.n_heads:
            raise Refused("latent attention has no key-value heads; take model.n_kv_heads=null")
        n_nope = qk_nope_head_dim or shape.head_dim
        scale = shape.scale or (n_nope + shape.head_dim) ** -0.5
        super().__init__(replace(shape, scale=scale))
        self.n_nope, self.n_value = n_nope, v_head_dim or shape.head_dim
        self.n_latent = kv_lora_rank or 4 * shape.head_dim
        d_model, heads, std, bias = shape.d_model, shape.n_heads, shape.init_std, shape.bias
        queries = heads * (self.n_nope + shape.head_dim)
        self.query_down, self.query_norm = None, None
        if q_lora_rank is not None:
            self.query_down = Linear(d_model, q_lora_rank, std, bias)
            self.query_norm = RMSNorm(q_lora_rank, shape.norm_eps)
        self.query = Linear(q_lora_rank or d_model, queries, std, bias and q_lora_rank is None)
        self.latent = Linear(d_model, self.n_latent + shape.head_dim, std, bias)
        self.latent_norm = RMSNorm(self.n_latent, shape.norm_eps)
        self.up = Linear(self.n_latent, heads * (self.n_nope + self.n_value), std, False)
        self.out = Linear(heads * self.n_value, d_model, shape.residual_std, bias)

    @property
    def caveat(self) -> str | None:
        """For `llm.build.caveats`."""
        if self.shape.qk_norm == "none":
            return None
        return (
            f"model.qk_norm={self.shape.qk_norm}: latent attention normalises its latents instead"
        )

    def project(
        self, x_BTD: Tensor, context: Context, position: Position
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_BHTN, q_BHTP, c_B1TR, k_B1TP = self._latents(x_BTD, context, position)
        up_BHTC = self.up(c_B1TR[:, 0]).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
        k_BHTN, v_BHTV = up_BHTC.split([self.n_nope, self.n_value], -1)
        k_BHTP = k_B1TP.expand(-1, self.n_heads, -1, -1)
        return torch.cat([q_BHTN, q_BHTP], -1), torch.cat([k_BHTN, k_BHTP], -1), v_BHTV

    def read(
        self, x_BTD: Tensor, context: Context, position: Position, layer: LayerCache
    ) -> Tensor:
        q_BHTN, q_BHTP, c_B1TR, k_B1TP = self._latents(x_BTD, context, position)
        layer.write(context, torch.cat([c_B1TR, k_B1TP], -1))
        up_HCR = self.up.weight.unflatten(0, (self.n_heads, -1))
        key_HNR, value_HVR = up_HCR.split([self.n_nope, self.n_value], 1)
        q_BHTR = _by_head(q_BHTN, key_HNR)
        (held_NB1KC,) = layer.held(context.cache)
        latent_NB1KR = held_NB1KC[..., : self.n_latent]
        q_BHTC = torch.cat([q_BHTR, q_BHTP], -1)
        y_BHTR = self._attend_to_cache(q_BHTC, held_NB1KC, latent_NB1KR, context, position)
        return _by_head(y_BHTR, value_HVR.mT)

    def cache(self, rows: int, max_len: int) -> LayerCache:
        return empty_layer(rows, max_len, 1, self.n_latent + self.head_dim, like=self.up.weight)

    def channels_met(self, seq_len: int) -> float:
        channels = (self.n_nope + self.head_dim + self.n_value) / 2
        return self.n_heads * channels * self._keys_met(seq_len)

    def _latents(
        self, x_BTD: Tensor, context: Context, position: Position
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (B, H, T, N) and (B, H, T, P), the latent (B, 1, T, R), its key (B, 1, T, P)."""
        down_BTR = x_BTD
        if self.query_down is not None and self.query_norm is not None:
            down_BTR = self.query_norm(self.query_down(x_BTD))
        q_BHTC = self.query(down_BTR).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
        q_BHTN, q_BHTP = q_BHTC.split([self.n_nope, self.head_dim], -1)
        c_B1TR, k_B1TP = self.latent(x_BTD)[:, None].split([self.n_latent, self.head_dim], -1)
        q_BHTP, k_B1TP = position.rotate(q_BHTP, context), position.rotate(k_B1TP, context)
        return q_BHTN, q_BHTP, self.latent_norm(c_B1TR), k_B1TP


def _by_head(x_BHTC: Tensor, weight_HCO: Tensor) -> Tensor:
    """Each head's rows times a matrix of its own: (B, H, T, C) → (B, H, T, O)."""
    x_HXC = x_BHTC.transpose(0, 1).flatten(1, 2)
    y_HXO = torch.bmm(x_HXC, weight_HCO.to(x_HXC.dtype))
    return y_HXO.unflatten(1, (x_BHTC.shape[0], x_BHTC.shape[2])).transpose(0, 1)
