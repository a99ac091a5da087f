"""The decoder-only transformer.

B batch, T time, D model width, V vocabulary, E experts, L layers
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config.errors import Refused
from llm.config.schema import Node
from llm.config.types import (
    UNRECORDED,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
)
from llm.layers.context import Context
from llm.layers.cross_entropy import IGNORED, chunk_terms, linear_cross_entropy, soft_capped
from llm.layers.feed_forward import Activation, FeedForward, FeedForwardOutput, FeedForwardShape
from llm.layers.linear import Linear
from llm.layers.noise import Dropout
from llm.layers.norm import NORMS
from llm.layers.roles import declare
from llm.model.attention import Attention, AttentionShape, QKNorm
from llm.model.cache import KVCache, LayerCache
from llm.model.position import Geometry, Position
from llm.model.scales import Init, Parametrization, Scales


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
    """x + Attention(norm(x)), then x + FeedForward(norm(x)): pre-norm, as GPT-2.

    Post-norm, as Vaswani et al. 2017: norm(x + Attention(x)), then norm(x + FeedForward(x)).
    """

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        attention: nn.Module,
        feed_forward: nn.Module,
        dropout: float,
        post_norm: bool,
    ):
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.feed_forward_norm = norm()
        self.feed_forward = feed_forward
        self.dropout = Dropout(dropout)
        self.post_norm = post_norm

    def forward(
        self,
        x_BTD: Tensor,
        context: Context,
        position: Position,
        layer: LayerCache | None,
    ) -> FeedForwardOutput:
        if self.post_norm:
            attended_BTD = self.attention(x_BTD, context, position, layer)
            x_BTD = self.attention_norm(x_BTD + self.dropout(attended_BTD))
            fed = self.feed_forward(x_BTD, context)
            return fed._replace(y_BTD=self.feed_forward_norm(x_BTD + fed.y_BTD))
        attended_BTD = self.attention(self.attention_norm(x_BTD), context, position, layer)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        fed = self.feed_forward(self.feed_forward_norm(x_BTD), context)
        return fed._replace(y_BTD=x_BTD + fed.y_BTD)


class Transformer(nn.Module):
    """A GPT: embedding, blocks, final norm (none where blocks end in one), head.

    Args:
        vocab_size: ids of the tokenizer
        feed_forward: makes the feed-forward part of a layer from its shape; dense or experts,
            the transformer does not know
        position: a `model/position` node
        attention: a `model/attention` node, null for multi-head attention
        d_model, n_layers, n_heads, d_ff: the usual
        n_kv_heads: key-value heads, null for as many as `n_heads`
        head_dim: channels of a head, null for d_model / n_heads
        max_seq_len: tokens of a training sequence, and positions where these are learned
        norm, norm_eps: `layernorm` or `rmsnorm`
        norm_position: `pre` (GPT-2) or `post` (Vaswani et al. 2017) the part that it belongs to
        qk_norm: `head` normalises queries and keys of each head (Qwen3), `projection` over all
            heads at once (OLMoE), `none` does not
        activation: gelu, gelu_tanh, relu2, swiglu or geglu
        bias: biases in linear maps and layer norms
        tie_embeddings: the head is the embedding transposed
        dropout: on the embedded tokens, on attention weights and on what each part adds to the
            residual stream
        window: how many places a query sees, its own counted; null for all before it. A list is
            repeated over the layers: [256, null] alternates, a list of n_layers says each
        n_sinks: so many first tokens of a text are seen through every window (Xiao et al. 2023)
        attention_softcap, logit_softcap: c of c · tanh(x/c) on attention scores and on logits
            (Gemma 2), null for none
        moe_every, dense_first: layer l = 1 … n_layers takes the `moe` part where l > dense_first
            and moe_every divides l, a dense one elsewhere
        d_ff_dense: width of the dense ones among the experts, null for d_ff
        init_std: standard deviation of the initial weights
        init, parametrization, base_d_model: how they depend on depth and width (`llm.model.scales`)
        init_from: a run, or a folder of public format, whose weights training starts from
            (`llm.hf.start` reads it; building a model does not)
    """

    config: dict[str, Any]  # the nodes that it was made from: set by `llm.build`

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
        attention: Node | None = None,
        head_dim: PositiveInt | None = None,
        norm_position: Literal["pre", "post"] = "pre",
        window: PositiveInt | list[PositiveInt | None] | None = None,
        n_sinks: NonNegativeInt = 0,
        attention_softcap: PositiveFloat | None = None,
        logit_softcap: PositiveFloat | None = None,
        moe_every: PositiveInt = 1,
        dense_first: NonNegativeInt = 0,
        d_ff_dense: PositiveInt | None = None,
        init: Init = "gpt2",
        parametrization: Parametrization = "standard",
        base_d_model: PositiveInt = 128,
        init_from: Annotated[str | None, UNRECORDED] = None,
    ):
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        if head_dim is None and d_model % n_heads:
            raise Refused(f"is {n_heads}, which does not divide d_model={d_model}", "n_heads")
        if n_heads % n_kv_heads:
            raise Refused(f"is {n_kv_heads}, which does not divide n_heads={n_heads}", "n_kv_heads")
        if window == []:
            raise Refused("is empty; write null for no window", "window")
        self.d_model, self.max_seq_len, self.n_layers = d_model, max_seq_len, n_layers
        head_dim = head_dim or d_model // n_heads
        self.logit_softcap = logit_softcap
        scales = Scales(init, parametrization, init_std, n_layers, d_model / base_d_model)
        self.width_ratio, self.logit_scale = scales.width_ratio, scales.logit_scale
        pattern = window if isinstance(window, list) else [window]
        make_attention: Any = attention or Attention

        def make_norm() -> nn.Module:
            return NORMS[norm](d_model, norm_eps, bias)

        def make_block(layer: int) -> Block:
            residual_std = scales.residual_std(layer)
            attending = make_attention(
                AttentionShape(
                    d_model,
                    n_heads,
                    n_kv_heads,
                    head_dim,
                    bias,
                    dropout,
                    scales.matrix_std,
                    residual_std,
                    qk_norm,
                    norm_eps,
                    pattern[layer % len(pattern)],
                    n_sinks,
                    scales.attention_scale(head_dim),
                    attention_softcap,
                )
            )
            chosen = layer >= dense_first and (layer + 1) % moe_every == 0
            width = d_ff if chosen else d_ff_dense or d_ff
            shape = FeedForwardShape(
                d_model, width, activation, bias, dropout, scales.matrix_std, residual_std
            )
            part = feed_forward(shape) if chosen else FeedForward(shape)
            return Block(make_norm, attending, part, dropout, norm_position == "post")

        embedding = torch.empty(vocab_size, d_model).normal_(std=init_std)
        self.embedding = declare(nn.Parameter(embedding), "head" if tie_embeddings else "embedding")
        geometry = Geometry(d_model, n_heads, head_dim, max_seq_len, init_std)
        self.position: Position = position(geometry)  # type: ignore[operator]
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(n_layers))
        self.final_norm = make_norm() if norm_position == "pre" else nn.Identity()
        untied = not tie_embeddings
        self.head = Linear(d_model, vocab_size, init_std, False, "head") if untied else None
        self.dropout = Dropout(dropout)
        self.z_loss = 0.0  # of the head, in training: `train.z_loss`
        self.loss_terms = chunk_terms  # torch.compile's translation, where blocks are compiled

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        document_ids_BT: Tensor | None = None,
        real_BT: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Output:
        """The forward contract: logits without targets, sums of losses with them.

        Args:
            tokens_BT: ids (B, T)
            targets_BT: next ids (B, T), −100 where the loss does not count
            document_ids_BT: positions attend only within runs of equal ids (B, T), and count from
                the beginning of each
            real_BT: False for padding (B, T), which no router, load or balance loss sees
            extras: tensors by name for parts that look for them in their `Context`
            cache: keys and values of the tokens before these; it is appended to
            last_only: logits of each row's last token alone, (B, 1, V)
        """
        rows, t = tokens_BT.shape
        if cache is not None and document_ids_BT is not None:
            raise ValueError("document_ids_BT and a cache do not go together")
        limit, longest = self.position.limit, cache.expect(rows, t) if cache is not None else t
        if limit is not None and longest > limit:
            raise ValueError(f"{longest} positions, and the model has {limit}")
        context = Context.of(
            tokens_BT,
            document_ids_BT=document_ids_BT,
            real_BT=real_BT,
            cache=cache,
            extras=extras,
        )
        x_BTD = F.embedding(tokens_BT, self.embedding)
        x_BTD = self.dropout(self.position.embed(x_BTD, context))
        if cache is None:  # before the blocks, which may be computed again
            for attention in self._attentions():
                attention.mask(context, self.position)
        aux: list[dict[str, Tensor]] = []
        router: list[dict[str, Tensor]] = []
        for layer, block in enumerate(self.blocks):
            layer_cache = cache.layers[layer] if cache is not None else None
            fed = block(x_BTD, context, self.position, layer_cache)
            x_BTD = fed.y_BTD
            aux.append(fed.aux)
            router.append(fed.router)
        if cache is not None:
            cache.advance(t)
        if last_only and cache is not None and cache.counts is not None:
            last_B = torch.tensor(cache.counts, device=x_BTD.device) - 1
            x_BTD = x_BTD[torch.arange(rows, device=x_BTD.device), last_B.clamp_min(0)][:, None]
        elif last_only:
            x_BTD = x_BTD[:, -1:]
        x_BTD = self.final_norm(x_BTD)
        if self.logit_scale != 1:
            x_BTD = x_BTD * self.logit_scale
        output = Output(aux=_over_layers(aux, torch.mean), router=_over_layers(router, None))
        weight_VD = self.embedding if self.head is None else self.head.weight
        if targets_BT is None:
            output.logits_BTV = soft_capped(F.linear(x_BTD, weight_VD), self.logit_softcap)
            return output
        z_loss = self.z_loss if self.training else 0.0
        objective, nats_N = linear_cross_entropy(
            x_BTD.flatten(0, 1),
            weight_VD,
            targets_BT.flatten(),
            self.logit_softcap,
            z_loss,
            self.loss_terms,
        )
        # The value is the cross-entropy alone; the gradient is that of the z-loss, too.
        output.loss_sum = objective - (objective.detach() - nats_N.sum()) if z_loss else objective
        output.n_tokens = (targets_BT != IGNORED).sum()
        output.nats_BT = nats_N.view_as(targets_BT)
        return output

    def cache(self, rows: int, max_len: int) -> KVCache:
        """An empty key-value cache for so many texts of `max_len` places at most."""
        layers = [attention.cache(rows, max_len) for attention in self._attentions()]
        return KVCache(layers, rows, max_len)

    def channels_met(self, seq_len: int) -> float:
        """Channels of keys that a query of a sequence meets, over all heads and layers, on average.

        Each costs two products forward (its score, its value) and four backward.
        """
        return sum(attention.channels_met(seq_len) for attention in self._attentions())

    def _attentions(self) -> list[Attention]:
        return [block.attention for block in self.blocks]  # type: ignore[misc]


def _over_layers(
    layers: list[dict[str, Tensor]], reduce: Callable[[Tensor], Tensor] | None
) -> dict[str, Tensor]:
    """Stack what each layer reports by name, in layer order; layers may report nothing."""
    names = dict.fromkeys(name for layer in layers for name in layer)
    stacked = {n: torch.stack([layer[n] for layer in layers if n in layer]) for n in names}
    return {n: reduce(t) if reduce else t for n, t in stacked.items()}
