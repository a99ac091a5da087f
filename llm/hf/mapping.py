"""A public config.json to our config and back, by the tables of `llm.hf.families`."""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from llm.config.choices import leaves
from llm.config.errors import Refused
from llm.config.schema import holds_node, locate, schema_of
from llm.hf.families import FAMILIES
from llm.hf.family import DENSE, HARMLESS, MOE, REQUIRED, TRAINING, Family, Key

Flat = dict[str, Any]  # dotted key of ours to value, `_target_`s included


def family_of(theirs: Mapping[str, Any]) -> Family:
    """The family that a config.json names; Refused for any other."""
    kind = theirs.get("model_type")
    known = ", ".join(FAMILIES)
    if kind not in FAMILIES:
        raise Refused(f"model_type: {kind!r} is no architecture that is known here: {known}")
    family = FAMILIES[kind]
    named = theirs.get("architectures") or [family.architecture]
    if family.architecture not in named:
        raise Refused(f"architectures: {named} is not {family.architecture}")
    return family


def from_theirs(theirs: dict[str, Any], family: Family) -> tuple[dict[str, Any], int]:
    """Our `{"model": …, "moe": …}` and the vocabulary size of a config.json.

    Raises Refused with the first key that we cannot reproduce; none is passed over.
    """
    known = {name for key in family.keys for name in (key.theirs, key.also)} | {"vocab_size"}
    known |= {name for special in family.specials for name in special.theirs}
    for name, value in theirs.items():
        if name in family.plain and value != family.plain[name]:
            wanted = family.plain[name]
            raise Refused(f"{name}: is {value!r}; only {wanted!r} can be reproduced here")
        if name not in known and name not in family.plain and name not in _harmless(family):
            raise Refused(f"{name}: {value!r} is not known here, nor whether it changes the model")
    has_experts = family.fixed["moe._target_"] == MOE
    flat = {k: v for k, v in TRAINING.items() if has_experts or not k.startswith("moe.")}
    flat |= family.fixed
    names: dict[str, str] = {}
    for key in family.keys:
        value = _read(key, theirs)
        if key.ours in names and flat[key.ours] != value:
            other = names[key.ours]
            raise Refused(f"{key.theirs}: is {value!r}, unlike {other}; here they are one setting")
        flat[key.ours], names[key.ours] = value, key.theirs
    for special in family.specials:
        flat |= special.read(theirs)
        names |= dict.fromkeys(special.ours, special.theirs[0])
    vocab_size = theirs.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise Refused(f"vocab_size: is no whole number, at least 1: {vocab_size!r}")
    config = {room: _checked(_nested(flat, room), room, names) for room in ("model", "moe")}
    return config, vocab_size


def _harmless(family: Family) -> frozenset[str]:
    return HARMLESS | set(family.harmless)


def _read(key: Key, theirs: Mapping[str, Any]) -> Any:
    value = theirs.get(key.theirs, theirs.get(key.also or "", key.default))
    if value is REQUIRED:
        raise Refused(f"{key.theirs}: is missing")
    if key.values is None:
        return value
    if not isinstance(value, str) or value not in key.values:
        raise Refused(f"{key.theirs}: is {value!r}; known here are {', '.join(key.values)}")
    return key.values[value]


def _nested(flat: Flat, room: str) -> dict[str, Any]:
    """The node of one room from its dotted keys."""
    node: dict[str, Any] = {}
    for dotted, value in flat.items():
        place, *path = dotted.split(".")
        if place != room:
            continue
        inner = node
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return node


def _checked(node: dict[str, Any], path: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The node as its class's signature wants it."""
    schema = schema_of(locate(node["_target_"]))
    for key in node:
        if key not in schema.keys and key != "_target_":
            raise TypeError(f"the family's table sets {path}.{key}, which is no key of ours")
    checked: dict[str, Any] = {"_target_": node["_target_"]}
    for key, parameter in schema.keys.items():
        here = f"{path}.{key}"
        if key not in node and parameter.default is MISSING:
            raise Refused(f"{names.get(here, here)}: {key} is missing")
        value = node.get(key, parameter.default)
        if holds_node(parameter.annotation) and isinstance(value, dict):
            checked[key] = _checked(value, here, names)
            continue
        try:
            checked[key] = parameter.check(value)
        except Refused as refusal:
            raise Refused(f"{names.get(here, here)}: {refusal.message}") from None
    return checked


def canonical(config: Mapping[str, Any]) -> Flat:
    """Dotted keys of our config, in one spelling of each function.

    What `null` stands for is filled in, and what has no effect is neutral.
    """
    flat = dict(leaves({"model": config["model"], "moe": config["moe"]}, ""))
    if flat.pop("model.attention", None) is None:
        flat.setdefault("model.attention._target_", "llm.model.attention.Attention")
    width, heads = flat["model.d_model"], flat["model.n_heads"]
    flat["model.n_kv_heads"] = flat["model.n_kv_heads"] or heads
    if width % heads == 0 and flat["model.head_dim"] == width // heads:
        flat["model.head_dim"] = None
    window = flat["model.window"]
    if isinstance(window, list):
        seen = {window[layer % len(window)] for layer in range(flat["model.n_layers"])}
        if len(seen) == 1:
            flat["model.window"] = window = seen.pop()
    if window is None:
        flat["model.n_sinks"] = 0
    alike = flat["model.d_ff_dense"] in (None, flat["model.d_ff"])
    if flat["moe._target_"] == DENSE and alike:
        flat |= {"model.moe_every": 1, "model.dense_first": 0}
    if flat["model.moe_every"] == 1 and flat["model.dense_first"] == 0:
        flat["model.d_ff_dense"] = None
    else:
        flat["model.d_ff_dense"] = flat["model.d_ff_dense"] or flat["model.d_ff"]
    if flat["moe._target_"] == MOE:
        _canonical_experts(flat)
    return flat


def _canonical_experts(flat: Flat) -> None:
    """Fine-grained experts counted as they are, and one name for each way to weigh them."""
    m = flat["moe.granularity"]
    flat |= {"moe.n_experts": m * flat["moe.n_experts"], "moe.top_k": m * flat["moe.top_k"]}
    flat |= {"model.d_ff": flat["model.d_ff"] // m, "moe.granularity": 1}
    if "bias" not in flat["moe.balance"].split("+"):  # losses are training's alone
        flat["moe.balance"] = "switch"
    if flat.get("moe.router.scores") == "softmax_after_topk":
        flat |= {"moe.router.scores": "softmax", "moe.router.renormalize": True}


def to_theirs(config: Mapping[str, Any], vocab_size: int) -> tuple[Family, dict[str, Any]]:
    """The first family that can express our config, and its config.json.

    Raises Refused with the key that is in the way of the family that comes nearest.
    """
    flat = canonical(config)
    nearest: list[str] | None = None
    for family in FAMILIES.values():
        theirs, problems = _write(flat, family)
        if not problems:
            return family, {**theirs, "vocab_size": vocab_size}
        if nearest is None or len(problems) < len(nearest):
            nearest = problems
    assert nearest is not None
    raise Refused(f"no public architecture can express this model: {nearest[0]}")


def _write(flat: Flat, family: Family) -> tuple[dict[str, Any], list[str]]:
    """Their config, and a line for each key of ours that this family cannot express."""
    problems: list[str] = []
    theirs: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{name: value for name, value in family.plain.items() if value not in (None, {})},
        "torch_dtype": "float32",
    }

    def problem(key: str, why: str) -> None:
        problems.append(f"{key}={flat.get(key)}: {family.model_type} {why}")

    for ours, value in family.fixed.items():
        if ours in flat and flat[ours] != value and ours not in TRAINING:
            problem(ours, f"has {value}")
    for key in family.keys:
        if key.ours not in flat:
            problem(key.ours, "needs it")
            continue
        value = flat[key.ours]
        if key.values is not None:
            names = [name for name, mine in key.values.items() if mine == value]
            if not names:
                problem(key.ours, f"has {', '.join(dict.fromkeys(key.values.values()))}")
                continue
            value = names[0]
        theirs[key.theirs] = value
    for special in family.specials:
        try:
            theirs |= special.write(flat)
        except Refused as refusal:
            problem(refusal.key or special.ours[0], refusal.message)
    known = {key.ours for key in family.keys} | set(family.fixed) | set(TRAINING)
    known |= {name for special in family.specials for name in special.ours}
    for ours in flat:
        if ours not in known:
            problem(ours, "has nothing like it")
    return theirs, problems
