"""What takes more than a renaming between a public config.json and ours."""

import math
from collections.abc import Mapping
from typing import Any

from llm.config.errors import Refused

_ROOM = "model.position"
#: Their name of a kind of rotary positions: our class, and our key for each of theirs.
ROPES: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("llm.model.position.Rope", {}),
    "linear": ("llm.model.rope_scaling.RopeLinear", {"factor": "factor"}),
    "dynamic": ("llm.model.rope_scaling.RopeDynamic", {"factor": "factor"}),
    "yarn": (
        "llm.model.rope_scaling.RopeYarn",
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_max_seq_len",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
        },
    ),
    "llama3": (
        "llm.model.rope_scaling.RopeLlama3",
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_max_seq_len",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        },
    ),
}
ROPE_THEIRS = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor")
ROPE_OURS = (
    f"{_ROOM}._target_",
    f"{_ROOM}.base",
    *dict.fromkeys(f"{_ROOM}.{mine}" for _, keys in ROPES.values() for mine in keys.values()),
)


def read_rope(theirs: Mapping[str, Any], base: float) -> dict[str, Any]:
    """Rotary positions, in the old keys (`rope_theta`, `rope_scaling`) or the new one."""
    where = "rope_parameters" if theirs.get("rope_parameters") else "rope_scaling"
    given = theirs.get(where) or {}
    if not isinstance(given, dict):
        raise Refused(f"is no mapping: {given!r}", where)
    given = {name: value for name, value in given.items() if value is not None}
    base = given.pop("rope_theta", None) or theirs.get("rope_theta") or base
    partial = given.pop("partial_rotary_factor", None) or theirs.get("partial_rotary_factor") or 1
    if partial != 1:
        why = f"is {partial}; rotary positions turn all channels here"
        raise Refused(why, "partial_rotary_factor")
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if kind not in ROPES:
        raise Refused(f"rope_type={kind!r} is not known here: {', '.join(ROPES)}", where)
    target, keys = ROPES[kind]
    length = theirs.get("max_position_embeddings")
    if kind == "yarn":
        _read_yarn(given, where)
    if kind == "dynamic" and given.pop("original_max_position_embeddings", length) != length:
        raise Refused("original_max_position_embeddings: is not max_position_embeddings", where)
    if "original_max_position_embeddings" in keys:
        given.setdefault("original_max_position_embeddings", length)
    found: dict[str, Any] = {f"{_ROOM}._target_": target, f"{_ROOM}.base": base}
    for name, value in given.items():
        if name not in keys:
            raise Refused(f"{name}: {value!r} is not known here with rope_type={kind}", where)
        found[f"{_ROOM}.{keys[name]}"] = value
    return found


def _read_yarn(given: dict[str, Any], where: str) -> None:
    """Settle what our YaRN does not have: another rounding, and two ways to say one factor."""
    if given.pop("truncate", True) is not True:
        raise Refused("truncate: is false; only true can be reproduced here", where)
    small, large = given.pop("mscale_all_dim", None), given.pop("mscale", None)
    if small and large and "attention_factor" not in given:
        s = given.get("factor", 1)

        def magnitude(scale: float) -> float:
            return 0.1 * scale * math.log(s) + 1 if s > 1 else 1.0

        given["attention_factor"] = magnitude(large) / magnitude(small)


def write_rope(ours: Mapping[str, Any]) -> dict[str, Any]:
    """In the old keys, which every version of `transformers` reads."""
    target = ours[f"{_ROOM}._target_"]
    kinds = {ours_target: (kind, keys) for kind, (ours_target, keys) in ROPES.items()}
    if target not in kinds:
        raise Refused("needs rotary positions", _ROOM)
    kind, keys = kinds[target]
    theta = {"rope_theta": ours[f"{_ROOM}.base"]}
    if kind == "default":
        return theta
    length = ours["model.max_seq_len"]
    original = ours.get(f"{_ROOM}.original_max_seq_len")
    if kind == "dynamic" and original not in (None, length):
        raise Refused("scales from max_seq_len on", f"{_ROOM}.original_max_seq_len")
    scaling: dict[str, Any] = {"rope_type": kind}
    for name, mine in keys.items():
        value = ours.get(f"{_ROOM}.{mine}")
        if mine == "original_max_seq_len" and value is None:
            value = length / ours[f"{_ROOM}.factor"]
            if value != int(value):
                raise Refused("needs a whole number here", f"{_ROOM}.{mine}")
            value = int(value)
        if value is not None:
            scaling[name] = value
    return {**theta, "rope_scaling": scaling}


def read_gpt2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Four times the model's width where n_inner says nothing; as many key-value heads as heads."""
    width = theirs.get("n_inner")
    if width is None and isinstance(theirs.get("n_embd"), int):
        width = 4 * theirs["n_embd"]
    return {"model.d_ff": width, "model.n_kv_heads": None}


def write_gpt2(ours: Mapping[str, Any]) -> dict[str, Any]:
    if ours["model.n_kv_heads"] != ours["model.n_heads"]:
        raise Refused("has as many key-value heads as heads", "model.n_kv_heads")
    return {"n_inner": ours["model.d_ff"]}


def read_head_dim(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Null where it is the usual one, which most files spell out."""
    given, heads = theirs.get("head_dim"), theirs.get("num_attention_heads")
    if isinstance(given, int) and isinstance(heads, int):
        given = None if given * heads == theirs.get("hidden_size") else given
    return {"model.head_dim": given}


def write_head_dim(ours: Mapping[str, Any]) -> dict[str, Any]:
    usual = ours["model.d_model"] // ours["model.n_heads"]
    return {"head_dim": ours["model.head_dim"] or usual}


def write_dividing_heads(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Llama's code wants n_heads to divide d_model whatever head_dim says."""
    if ours["model.d_model"] % ours["model.n_heads"]:
        raise Refused("needs a divisor of d_model", "model.n_heads")
    return write_head_dim(ours)


def read_window(theirs: Mapping[str, Any], default: int | None) -> dict[str, Any]:
    return {"model.window": theirs.get("sliding_window", default)}


def write_window(ours: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(ours["model.window"], list):
        raise Refused("has one window for all layers", "model.window")
    return {"sliding_window": ours["model.window"]}


def read_switched_window(theirs: Mapping[str, Any], default: int | None) -> dict[str, Any]:
    """Qwen's window counts where `use_sliding_window` says so."""
    if theirs.get("use_sliding_window", False) is not True:
        return {"model.window": None}
    if theirs.get("max_window_layers") is not None:
        why = f"is {theirs['max_window_layers']} with use_sliding_window, whose meaning changed"
        raise Refused(f"{why} between versions; leave it out", "max_window_layers")
    return read_window(theirs, default)


def write_switched_window(ours: Mapping[str, Any]) -> dict[str, Any]:
    return {**write_window(ours), "use_sliding_window": ours["model.window"] is not None}


def read_dense_layers(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen's layers without experts: those listed, and all but every n-th."""
    every, listed = theirs.get("decoder_sparse_step", 1), theirs.get("mlp_only_layers") or []
    if listed != list(range(len(listed))):
        raise Refused(f"{listed} are not the first layers", "mlp_only_layers")
    has_dense = bool(listed) or every != 1
    return {
        "model.moe_every": every,
        "model.dense_first": len(listed),
        "model.d_ff_dense": theirs.get("intermediate_size", 6144) if has_dense else None,
    }


def write_dense_layers(ours: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "decoder_sparse_step": ours["model.moe_every"],
        "mlp_only_layers": list(range(ours["model.dense_first"])),
        "intermediate_size": ours["model.d_ff_dense"] or ours["model.d_ff"],
    }
