"""The public architectures that the handwritten components reproduce, a table each.

A family says which key of its config.json is which key of ours, what it fixes on either side, and
what its tensors are called on disk. `llm.hf.mapping` and `llm.hf.weights` read this both ways.
"""

from collections.abc import Callable
from typing import Any

from llm.hf import special
from llm.hf.family import DENSE, MOE, ROUTER, Family, Key, Special
from llm.hf.weights import Name

#: The same in all families. (`is_decoder` and `cross_attention` make another network.)
_PLAIN: dict[str, Any] = {
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "auto_map": None,
}

_SHARED: dict[str, Any] = {
    "model._target_": "llm.model.transformer.Transformer",
    "model.attention._target_": "llm.model.attention.Attention",
    "model.norm_position": "pre",
    "model.n_sinks": 0,
    "model.attention_softcap": None,
    "model.logit_softcap": None,
    "model.parametrization": "standard",
}
_NO_WINDOW: dict[str, Any] = {"model.window": None}
_ALL_ALIKE: dict[str, Any] = {
    "model.moe_every": 1,
    "model.dense_first": 0,
    "model.d_ff_dense": None,
}
_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_LLAMA_FIXED = {
    **_SHARED,
    **_ALL_ALIKE,
    "model.norm": "rmsnorm",
    "model.qk_norm": "none",
    "moe._target_": DENSE,
}
_EXPERTS_FIXED = {
    **_SHARED,
    "model.norm": "rmsnorm",
    "model.bias": False,
    "moe._target_": MOE,
    "moe.granularity": 1,
    "moe.n_shared": 0,
    "moe.choice": "token",
    "moe.eval_capacity_factor": None,
    "moe.balance": "switch",  # in canonical spelling: any losses, no bias
    "moe.router._target_": ROUTER,
    "moe.router.scores": "softmax",
    "moe.router.scale": 1.0,
    "moe.router.noise": False,
}

_GATES = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
_LLAMA_KEYS = (
    Key("model.d_model", "hidden_size"),
    Key("model.n_layers", "num_hidden_layers"),
    Key("model.n_heads", "num_attention_heads"),
    Key("model.max_seq_len", "max_position_embeddings"),
    Key("model.norm_eps", "rms_norm_eps", 1e-6),
    Key("model.activation", "hidden_act", "silu", _GATES),
    Key("model.tie_embeddings", "tie_word_embeddings", False),
    Key("model.init_std", "initializer_range", 0.02),
)
_WIDTH = Key("model.d_ff", "intermediate_size")


def _kv_heads(default: int | None) -> Key:
    return Key("model.n_kv_heads", "num_key_value_heads", default)


def _llama_names(*feed_forward: Name) -> tuple[Name, ...]:
    layer, ours = "model.layers.{i}", "blocks.{i}"
    attention = [
        Name(f"{layer}.self_attn.{short}_proj.{part}", (f"{ours}.attention.{name}.{part}",))
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
        for part in ("weight", "bias")
    ]
    return (
        Name("model.embed_tokens.weight", ("embedding",)),
        Name(f"{layer}.input_layernorm.weight", (f"{ours}.attention_norm.gain",)),
        *attention,
        Name(f"{layer}.self_attn.q_norm.weight", (f"{ours}.attention.query_norm.gain",)),
        Name(f"{layer}.self_attn.k_norm.weight", (f"{ours}.attention.key_norm.gain",)),
        Name(f"{layer}.post_attention_layernorm.weight", (f"{ours}.feed_forward_norm.gain",)),
        *feed_forward,
        Name("model.norm.weight", ("final_norm.gain",)),
        Name("lm_head.weight", ("head.weight",)),
    )


_DENSE_NAMES = tuple(
    Name(
        f"model.layers.{{i}}.mlp.{name}_proj.{part}",
        (f"blocks.{{i}}.feed_forward.{name}.{part}",),
    )
    for name in ("gate", "up", "down")
    for part in ("weight", "bias")
)


def _expert_names(router: str, expert: str, gate: str, up: str, down: str) -> tuple[Name, ...]:
    layer, ours = "model.layers.{i}", "blocks.{i}.feed_forward"
    return (
        Name(f"{layer}.{router}.weight", (f"{ours}.router.weight_ED",)),
        Name(f"{layer}.{expert}.{{j}}.{gate}.weight", (f"{ours}.experts.gate_EDF",), turned=True),
        Name(f"{layer}.{expert}.{{j}}.{up}.weight", (f"{ours}.experts.up_EDF",), turned=True),
        Name(f"{layer}.{expert}.{{j}}.{down}.weight", (f"{ours}.experts.down_EFD",), turned=True),
    )


_MLP_EXPERTS = _expert_names("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj")
_ANGLES = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def _head_dim(
    write: Callable[[dict[str, Any]], dict[str, Any]] = special.write_head_dim,
) -> Special:
    return Special(("head_dim",), ("model.head_dim",), special.read_head_dim, write)


def _window(default: int | None) -> Special:
    return Special(
        ("sliding_window",),
        ("model.window",),
        lambda theirs: special.read_window(theirs, default),
        special.write_window,
    )


def _rope(base: float) -> Special:
    """`base`: what the family's code takes where config.json has none."""
    return Special(
        special.ROPE_THEIRS,
        special.ROPE_OURS,
        lambda theirs: special.read_rope(theirs, base),
        special.write_rope,
    )


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    keys=(
        Key("model.d_model", "n_embd"),
        Key("model.n_layers", "n_layer"),
        Key("model.n_heads", "n_head"),
        Key("model.max_seq_len", "n_positions"),
        Key("model.norm_eps", "layer_norm_epsilon", 1e-5),
        Key(
            "model.activation",
            "activation_function",
            "gelu_new",
            {
                "gelu_new": "gelu_tanh",
                "gelu_pytorch_tanh": "gelu_tanh",
                "gelu_fast": "gelu_tanh",
                "gelu": "gelu",
                "relu2": "relu2",
            },
        ),
        Key("model.tie_embeddings", "tie_word_embeddings", True),
        Key("model.init_std", "initializer_range", 0.02),
    ),
    fixed={
        **_SHARED,
        **_NO_WINDOW,
        **_ALL_ALIKE,
        "model.norm": "layernorm",
        "model.bias": True,
        "model.qk_norm": "none",
        "model.head_dim": None,
        "model.position._target_": "llm.model.position.Learned",
        "moe._target_": DENSE,
    },
    plain={
        **_PLAIN,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    },
    specials=(
        Special(
            ("n_inner",),
            ("model.d_ff", "model.n_kv_heads"),
            special.read_gpt2,
            special.write_gpt2,
        ),
    ),
    harmless=(
        "n_ctx",
        "n_special",
        "predict_special_tokens",
        "output_past",
        "_num_labels",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "gradient_checkpointing",
    ),
    names=(
        Name("transformer.wte.weight", ("embedding",)),
        Name("transformer.wpe.weight", ("position.weight",)),
        *(
            Name(f"transformer.h.{{i}}.{theirs}.{part}", (f"blocks.{{i}}.{ours}.{mine}",))
            for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "feed_forward_norm"))
            for part, mine in (("weight", "gain"), ("bias", "bias"))
        ),
        *(
            Name(
                f"transformer.h.{{i}}.{theirs}.{part}",
                tuple(f"blocks.{{i}}.{name}.{part}" for name in ours),
                turned=part == "weight",
            )
            for theirs, ours in (
                ("attn.c_attn", ("attention.query", "attention.key", "attention.value")),
                ("attn.c_proj", ("attention.out",)),
                ("mlp.c_fc", ("feed_forward.up",)),
                ("mlp.c_proj", ("feed_forward.down",)),
            )
            for part in ("weight", "bias")
        ),
        Name("transformer.ln_f.weight", ("final_norm.gain",)),
        Name("transformer.ln_f.bias", ("final_norm.bias",)),
        Name("lm_head.weight", ("head.weight",)),
    ),
    optional="transformer.",
    unread=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    keys=(
        *_LLAMA_KEYS,
        _WIDTH,
        _kv_heads(None),
        Key("model.bias", "attention_bias", False),
        Key("model.bias", "mlp_bias", False),
    ),
    fixed={**_LLAMA_FIXED, **_NO_WINDOW},
    plain={**_PLAIN, "sliding_window": None, "rope_interleaved": False},
    specials=(_head_dim(special.write_dividing_heads), _rope(10_000.0)),
    harmless=("is_llama_config", "transformers.js_config"),
    names=_llama_names(*_DENSE_NAMES),
    unread=_ANGLES,
)

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    keys=(*_LLAMA_KEYS, _WIDTH, _kv_heads(8)),
    fixed={**_LLAMA_FIXED, "model.bias": False},
    plain={**_PLAIN, **_NO_BIAS, "layer_types": None},
    specials=(_head_dim(), _window(4096), _rope(10_000.0)),
    names=_llama_names(*_DENSE_NAMES),
    unread=_ANGLES,
)

MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    keys=(
        *_LLAMA_KEYS,
        _WIDTH,
        _kv_heads(8),
        Key("moe.n_experts", "num_local_experts", 8),
        Key("moe.top_k", "num_experts_per_tok", 2),
    ),
    fixed={
        **_EXPERTS_FIXED,
        **_ALL_ALIKE,
        "model.qk_norm": "none",
        "moe.router.renormalize": True,
    },
    plain={**_PLAIN, **_NO_BIAS},
    specials=(_head_dim(), _window(None), _rope(1_000_000.0)),
    names=_llama_names(
        *_expert_names("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2")
    ),
    unread=_ANGLES,
)

OLMOE = Family(
    "olmoe",
    "OlmoeForCausalLM",
    keys=(
        *_LLAMA_KEYS,
        _WIDTH,
        _kv_heads(None),
        Key("moe.n_experts", "num_experts", 64),
        Key("moe.top_k", "num_experts_per_tok", 8),
        Key("moe.router.renormalize", "norm_topk_prob", False),
    ),
    fixed={
        **_EXPERTS_FIXED,
        **_ALL_ALIKE,
        **_NO_WINDOW,
        "model.qk_norm": "projection",
        "model.head_dim": None,
    },
    plain={**_PLAIN, "attention_bias": False, "clip_qkv": None, "sliding_window": None},
    specials=(_rope(10_000.0),),
    names=_llama_names(*_MLP_EXPERTS),
    unread=_ANGLES,
)

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    keys=(
        *_LLAMA_KEYS,
        Key("model.d_ff", "moe_intermediate_size", 768),
        _kv_heads(4),
        Key("moe.n_experts", "num_experts", 128, also="num_local_experts"),
        Key("moe.top_k", "num_experts_per_tok", 8),
        Key("moe.router.renormalize", "norm_topk_prob", False),
    ),
    fixed={**_EXPERTS_FIXED, "model.qk_norm": "head"},
    plain={**_PLAIN, "attention_bias": False},
    specials=(
        _head_dim(),
        Special(
            ("sliding_window", "use_sliding_window", "max_window_layers"),
            ("model.window",),
            lambda theirs: special.read_switched_window(theirs, 4096),
            special.write_switched_window,
        ),
        Special(
            ("decoder_sparse_step", "mlp_only_layers", "intermediate_size"),
            ("model.moe_every", "model.dense_first", "model.d_ff_dense"),
            special.read_dense_layers,
            special.write_dense_layers,
        ),
        _rope(10_000.0),
    ),
    names=_llama_names(*_DENSE_NAMES, *_MLP_EXPERTS),
    unread=_ANGLES,
)

#: In the order in which an export tries them.
FAMILIES = {
    family.model_type: family for family in (GPT2, LLAMA, MISTRAL, MIXTRAL, OLMOE, QWEN3_MOE)
}
