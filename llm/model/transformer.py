"""The decoder-only transformer.

B batch, T time, D model width, V vocabulary, E experts, L layers
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import PositiveFloat, PositiveInt, ProperFraction
from llm.layers.cross_entropy import IGNORED, linear_cross_entropy
from llm.layers.feed_forward import Activation, FeedForwardOutput, FeedForwardShape
from llm.layers.linear import Linear
from llm.layers.noise import Dropout
from llm.layers.norm import NORMS
from llm.layers.roles import declare
from llm.model.attention import Attention, QKNorm, causal_mask
from llm.model.cache import KVCache
from llm.model.position import Geometry, Position


@dataclass
class Output:
    """What one call of the model returns.

    Without targets there are logits; with them the head and the loss run in chunks and there is
    none. Sums, so that any split of a batch adds up.
    """

    logits_BTV: Tensor | None = None
    loss_sum: Tensor | None = None  # cross-entropy in nats, summed over the counted targets
    n_tokens: Tensor | None = None  # how many targets counted (those that are not −100)
    nats_BT: Tensor | None = None  # the same per target, detached, 0 where it does not count
    aux: dict[str, Tensor] = field(default_factory=dict)  # weighted, means over tokens and layers
    router: dict[str, Tensor] = field(default_factory=dict)  # statistics, stacked over layers


class Block(nn.Module):
    """x + Attention(norm(x)), then x + FeedForward(norm(x)) (pre-norm, as GPT-2)."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        attention: Attention,
        feed_forward: nn.Module,
        dropout: float,
    ):
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.feed_forward_norm = norm()
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        positions_T: Tensor,
        position: Position,
        mask_BTS: Tensor | None,
        layer: int,
        cache: KVCache | None,
    ) -> FeedForwardOutput:
        attended_BTD = self.attention(
            self.attention_norm(x_BTD), positions_T, position, mask_BTS, layer, cache
        )
        x_BTD = x_BTD + self.dropout(attended_BTD)
        fed = self.feed_forward(self.feed_forward_norm(x_BTD), decoding=cache is not None)
        return fed._replace(y_BTD=x_BTD + fed.y_BTD)


class Transformer(nn.Module):
    """A GPT: embedding, blocks, final norm, head.

    Initialisation as GPT-2: N(0, init_std²), and init_std/√(2L) for the two projections of each
    block that write into the residual stream.

    Args:
        vocab_size: ids of the tokenizer
        feed_forward: makes the feed-forward part of a layer from its shape; dense or experts,
            the transformer does not know
        position: a `model/position` node
        d_model, n_layers, n_heads, d_ff: the usual
        n_kv_heads: key-value heads, null for as many as `n_heads`
        max_seq_len: tokens of a training sequence, and positions where these are learned
        norm, norm_eps: `layernorm` or `rmsnorm`
        qk_norm: `head` normalises queries and keys of each head (Qwen3), `none` does not
        activation: gelu, gelu_tanh, relu2, swiglu or geglu
        bias: biases in linear maps and layer norms
        tie_embeddings: the head is the embedding transposed
        dropout: on the embedded tokens, on attention weights and on what each part adds to the
            residual stream
        init_std: standard deviation of the initial weights
    """

    def __init__(
        self,
        vocab_size: int,
        feed_forward: Callable[[FeedForwardShape], nn.Module],
        *,
        position: Node,
        d_model: PositiveInt,
        n_layers: PositiveInt,
        n_heads: PositiveInt,
        n_kv_heads: PositiveInt | None,
        d_ff: PositiveInt,
        max_seq_len: PositiveInt,
        norm: Literal["layernorm", "rmsnorm"],
        norm_eps: PositiveFloat,
        qk_norm: QKNorm,
        activation: Activation,
        bias: bool,
        tie_embeddings: bool,
        dropout: ProperFraction,
        init_std: PositiveFloat,
    ):
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        if d_model % n_heads:
            raise Refused(f"is {n_heads}, which does not divide d_model={d_model}", "n_heads")
        if n_heads % n_kv_heads:
            raise Refused(f"is {n_kv_heads}, which does not divide n_heads={n_heads}", "n_kv_heads")
        self.d_model, self.max_seq_len, self.n_layers = d_model, max_seq_len, n_layers
        self.n_kv_heads = n_kv_heads
        self.head_dim = d_model // n_heads
        residual_std = init_std / (2 * n_layers) ** 0.5
        shape = FeedForwardShape(d_model, d_ff, activation, bias, dropout, init_std, residual_std)

        def make_norm() -> nn.Module:
            return NORMS[norm](d_model, norm_eps, bias)

        embedding = torch.empty(vocab_size, d_model).normal_(std=init_std)
        self.embedding = declare(nn.Parameter(embedding), "head" if tie_embeddings else "embedding")
        geometry = Geometry(d_model, n_heads, self.head_dim, max_seq_len, init_std)
        self.position: Position = position(geometry)  # type: ignore[operator]
        self.blocks = nn.ModuleList(
            Block(
                make_norm,
                Attention(
                    d_model,
                    n_heads,
                    n_kv_heads,
                    bias,
                    dropout,
                    init_std,
                    residual_std,
                    qk_norm,
                    norm_eps,
                ),
                feed_forward(shape),
                dropout,
            )
            for _ in range(n_layers)
        )
        self.final_norm = make_norm()
        untied = not tie_embeddings
        self.head = Linear(d_model, vocab_size, init_std, False, "head") if untied else None
        self.dropout = Dropout(dropout)
        self.z_loss = 0.0  # of the head, in training: `train.z_loss`

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        document_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Output:
        """The forward contract: logits without targets, sums of losses with them.

        Args:
            tokens_BT: ids (B, T)
            targets_BT: next ids (B, T), −100 where the loss does not count
            document_ids_BT: positions attend only within equal ids (B, T)
            cache: keys and values of the tokens before these; it is appended to
        """
        t = tokens_BT.shape[1]
        start = cache.length if cache is not None else 0
        limit = self.position.limit
        if limit is not None and start + t > limit:
            raise ValueError(f"{start + t} positions, and the model has {limit}")
        positions_T = torch.arange(start, start + t, device=tokens_BT.device)
        mask_BTS = causal_mask(positions_T, start + t, document_ids_BT, cache is not None)
        x_BTD = F.embedding(tokens_BT, self.embedding)
        x_BTD = self.dropout(self.position.embed(x_BTD, positions_T))
        aux: list[dict[str, Tensor]] = []
        router: list[dict[str, Tensor]] = []
        for layer, block in enumerate(self.blocks):
            fed = block(x_BTD, positions_T, self.position, mask_BTS, layer, cache)
            x_BTD = fed.y_BTD
            aux.append(fed.aux)
            router.append(fed.router)
        if cache is not None:
            cache.advance(t)
        x_BTD = self.final_norm(x_BTD)
        output = Output(aux=_over_layers(aux, torch.mean), router=_over_layers(router, None))
        weight_VD = self.embedding if self.head is None else self.head.weight
        if targets_BT is None:
            output.logits_BTV = F.linear(x_BTD, weight_VD)
            return output
        z_loss = self.z_loss if self.training else 0.0
        objective, nats_N = linear_cross_entropy(
            x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), z_loss
        )
        # The value is the cross-entropy alone; the gradient is that of the z-loss, too.
        output.loss_sum = objective - (objective.detach() - nats_N.sum()) if z_loss else objective
        output.n_tokens = (targets_BT != IGNORED).sum()
        output.nats_BT = nats_N.view_as(targets_BT)
        return output

    def cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty key-value cache on the model's device."""
        device, dtype = self.embedding.device, self.embedding.dtype
        shape = (self.n_layers, batch_size, self.n_kv_heads, max_len, self.head_dim)
        return KVCache(*shape, device, dtype)


def _over_layers(
    layers: list[dict[str, Tensor]], reduce: Callable[[Tensor], Tensor] | None
) -> dict[str, Tensor]:
    """Stack what each layer reports by name, in layer order; layers may report nothing."""
    names = dict.fromkeys(name for layer in layers for name in layer)
    stacked = {n: torch.stack([layer[n] for layer in layers if n in layer]) for n in names}
    return {n: reduce(t) if reduce else t for n, t in stacked.items()}
