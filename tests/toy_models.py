"""Models of a few thousand numbers, all of them random, so that a wrong sign or place shows.

At the usual initialisation (σ = 0.02, gains 1, biases 0) many errors shift logits by less than
rounding does; with every parameter random they shift them by more than 0.1.
"""

from functools import partial
from inspect import signature

import torch
from torch import nn

from llm.layers.context import Context
from llm.layers.feed_forward import FeedForward, FeedForwardShape
from llm.model.position import Alibi, Kerple, Learned, Position, Rope, Sinusoidal
from llm.model.transformer import Transformer
from llm.moe.layer import MoE
from llm.moe.router import TopKRouter
from llm.reading import Reading
from llm.tokenizer.bytes import Bytes

POSITIONS = {
    "none": Position,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rope": Rope,
    "alibi": Alibi,
    "kerple": Kerple,
}
STYLES = {
    "gpt2": {
        "norm": "layernorm",
        "activation": "gelu_tanh",
        "bias": True,
        "tie_embeddings": True,
        "qk_norm": "none",
    },
    "llama": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
        "tie_embeddings": False,
        "qk_norm": "none",
    },
    "qwen3": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
        "tie_embeddings": True,
        "qk_norm": "head",
    },
}
FEED_FORWARDS = ("dense", "switch", "topk")
VOCAB = 37


def context_of(x_BTD, document_ids_BT=None, **facts) -> Context:
    """The context of a call whose tokens do not matter, for parts that are called alone."""
    tokens_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.int64)
    return Context.of(tokens_BT, document_ids_BT=document_ids_BT, **facts)


def reading(tokenizer=None, **changes) -> Reading:
    """How a toy run reads: bytes, in rows of 8, four at once."""
    tokenizer = tokenizer or Bytes()
    facts = {"precision": "fp32", "seq_len": 8, "document_mask": False, "eval_rows": 4}
    return Reading(tokenizer=tokenizer, start_id=tokenizer.eot, **{**facts, **changes})


def shape(**changes) -> FeedForwardShape:
    """A feed-forward part of width 16 with 24 inner units."""
    facts = {
        "d_model": 16,
        "d_ff": 24,
        "activation": "gelu",
        "bias": True,
        "dropout": 0.0,
        "init_std": 0.02,
        "residual_std": 0.01,
    }
    return FeedForwardShape(**{**facts, **changes})


def router(top_k: int, **changes):
    settings = {"renormalize": top_k > 1, "jitter": 0.0, "init_scale": 0.1, **changes}
    return partial(TopKRouter, **settings)


def experts(n_experts: int = 4, top_k: int = 1, balance_loss=0.01, z_loss=0.001, **changes):
    """A factory of MoE layers, as the transformer takes it; `changes` are keys of its router (of
    which there is one for top_k·granularity) or of the layer."""
    of_router = [*signature(TopKRouter).parameters.keys() & changes.keys()]
    routing = {key: changes.pop(key) for key in of_router}
    return partial(
        MoE,
        n_experts=n_experts,
        top_k=top_k,
        router=router(top_k * changes.get("granularity", 1), **routing),
        balance_loss=balance_loss,
        z_loss=z_loss,
        **changes,
    )


def feed_forward(moe: str):
    return {"dense": FeedForward, "switch": experts(), "topk": experts(top_k=2)}[moe]


def transformer(
    moe="dense", position: str = "rope", style: str = "gpt2", vocab_size: int = VOCAB, **changes
) -> Transformer:
    """A transformer as initialised; `moe` is a name or a factory of feed-forward parts."""
    settings = {
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": None,
        "d_ff": 24,
        "max_seq_len": 12,
        "norm_eps": 1e-5,
        "dropout": 0.0,
        "init_std": 0.02,
        **STYLES[style],
        **changes,
    }
    parts = feed_forward(moe) if isinstance(moe, str) else moe
    return Transformer(vocab_size, parts, position=POSITIONS[position], **settings)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew: matrices keep the scale of their input, gains lie about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.role == "gain":
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.role == "bias":
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model


def tokens(rows: int, length: int, seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
