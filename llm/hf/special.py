"""What takes more than a renaming between a public config.json and ours."""

from typing import Any

from llm.config.errors import Refused

ROPE = "llm.model.position.Rope"
ROPE_OURS = ("model.position._target_", "model.position.base")
ROPE_THEIRS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


def read_n_inner(theirs: dict[str, Any]) -> dict[str, Any]:
    """GPT-2's feed-forward width is four times the model's where nothing is said."""
    width = theirs.get("n_inner")
    if width is None and isinstance(theirs.get("n_embd"), int):
        width = 4 * theirs["n_embd"]
    return {"model.d_ff": width}


def write_n_inner(ours: dict[str, Any]) -> dict[str, Any]:
    return {"n_inner": ours["model.d_ff"]}


def read_rope(theirs: dict[str, Any], base: float) -> dict[str, Any]:
    """Rotary positions, in the old keys (`rope_theta`, `rope_scaling`) or the new one."""
    scaling = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise Refused(f"is no mapping: {scaling!r}", "rope_scaling")
    scaling = dict(scaling)
    base = scaling.pop("rope_theta", None) or theirs.get("rope_theta") or base
    partial = scaling.pop("partial_rotary_factor", None) or theirs.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        why = f"is {partial}; rotary positions turn all channels here"
        raise Refused(why, "partial_rotary_factor")
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    if kind != "default":
        raise Refused(f"rope_type={kind} is not known here", "rope_scaling")
    return {"model.position._target_": ROPE, "model.position.base": base}


def write_rope(ours: dict[str, Any]) -> dict[str, Any]:
    if ours["model.position._target_"] != ROPE:
        raise Refused("rotary positions are needed", "model.position")
    return {"rope_theta": ours["model.position.base"], "rope_scaling": None}


def read_head_dim(theirs: dict[str, Any]) -> dict[str, Any]:
    """The width of a head, null where it is the usual one."""
    width, heads, given = (
        theirs.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim")
    )
    usual = (
        isinstance(width, int)
        and isinstance(heads, int)
        and heads > 0
        and width % heads == 0
        and given == width // heads
    )
    return {"model.head_dim": None if usual else given}


def write_head_dim(ours: dict[str, Any]) -> dict[str, Any]:
    usual = ours["model.d_model"] // ours["model.n_heads"]
    return {"head_dim": ours.get("model.head_dim") or usual}
