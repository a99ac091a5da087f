"""What a public architecture is to us, and what of a config.json is of no account."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.hf.weights import Name

#: Stands for a key that config.json must have.
REQUIRED: Any = object()


@dataclass(frozen=True)
class Key:
    """One value under two names.

    default: what the family's code takes where config.json says nothing
    values: theirs to ours where these are called differently; no other value can be expressed. Of
        two for one of ours, the first is written
    also: another name of it, which some versions write
    """

    ours: str
    theirs: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None
    also: str | None = None


@dataclass(frozen=True)
class Special:
    """What takes more than a renaming.

    theirs: the keys of config.json that it knows
    ours: the keys of ours that it knows
    read: config.json to those keys of ours
    write: our keys to theirs, or Refused names the one that is in the way
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[dict[str, Any]], dict[str, Any]]
    write: Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One public architecture.

    fixed: keys of ours with the one value that this family has
    plain: keys of theirs with the one value that we reproduce, also the default
    optional: beginnings of names that some files lack (`transformer.` in GPT-2's)
    unread: names on disk that hold nothing trained: masks, tables of angles
    """

    model_type: str
    architecture: str
    keys: tuple[Key, ...]
    fixed: Mapping[str, Any]
    plain: Mapping[str, Any]
    names: tuple[Name, ...]
    specials: tuple[Special, ...] = ()
    harmless: tuple[str, ...] = ()
    optional: str = ""
    unread: tuple[str, ...] = field(default=())


DENSE = "llm.layers.feed_forward.FeedForward"
MOE = "llm.moe.layer.MoE"
ROUTER = "llm.moe.router.TopKRouter"

#: Ours that only training sees, with what a model from elsewhere gets: they are not exported, and
#: `model.KEY=VALUE` beside `model.init_from` sets them.
TRAINING: dict[str, Any] = {
    "model.dropout": 0.0,
    "model.init": "gpt2",
    "model.base_d_model": 128,
    "moe.capacity_factor": None,
    "moe.overflow": "residual",
    "moe.balance_loss": 0.01,
    "moe.importance_loss": 0.1,
    "moe.load_loss": 0.1,
    "moe.z_loss": 0.0,
    "moe.bias_update": 0.001,
    "moe.init": "random",
    "moe.router.jitter": 0.0,
    "moe.router.init_scale": 0.1,
    "model.init_from": None,
}

#: Theirs that change no logits: who made the file, which ids mean what to a tokenizer, settings of
#: training, and what `generate` takes by default.
HARMLESS = frozenset(
    """
    _name_or_path architectures model_type transformers_version torch_dtype dtype use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id
    decoder_start_token_id tokenizer_class prefix task_specific_params problem_type id2label
    label2id num_labels finetuning_task return_dict output_attentions output_hidden_states
    torchscript tf_legacy_loss use_bfloat16 chunk_size_feed_forward _attn_implementation
    attn_implementation _attn_implementation_autoset _commit_hash
    resid_pdrop embd_pdrop attn_pdrop attention_dropout hidden_dropout output_router_logits
    router_aux_loss_coef router_jitter_noise
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    pretraining_tp
    """.split()
)
