"""The width at which a dense model is equal to one with experts in what it spends.

Operations, parameters and memory are straight lines in d_ff, so two widths tell all others. One
more of d_ff is 6 · d_model · (2, or 3 where the activation is gated) operations a token and layer,
or a sixth of that in parameters, and the dense model is off by half of it at most. The vocabulary
costs both the same, so the width is known before there are any data.
"""

from typing import Any

from llm.config.errors import Refused
from llm.model.accounting import Account
from llm.plan.cost import account, machine_here
from llm.plan.memory import peak_memory

#: What `moe=dense` is once it is validated.
DENSE = {"_target_": "llm.layers.feed_forward.FeedForward"}
#: Any will do.
_VOCABULARY = 256


def settings(model: dict[str, Any], d_ff: int) -> dict[str, int]:
    """The keys of the node `model` by which a partner differs from its model with experts.

    Where dense layers among the experts have a width of their own (`model.d_ff_dense`), they keep
    it. Otherwise all layers of the partner are equally wide, as in any dense model, and which of
    them had experts is no part of it.
    """
    keys = {"d_ff": d_ff}
    if model.get("d_ff_dense") is None:
        keys |= {key: n for key, n in {"moe_every": 1, "dense_first": 0}.items() if key in model}
    return {key: n for key, n in keys.items() if key == "d_ff" or model[key] != n}


def dense_of(config: dict[str, Any], d_ff: int) -> dict[str, Any]:
    """The dense model of this shape and width, as a config or the part of it that it has."""
    model = config["model"]
    return {**config, "moe": dict(DENSE), "model": {**model, **settings(model, d_ff)}}


def equal_width(config: dict[str, Any], by: str) -> int:
    """The d_ff at which the dense model spends as much of `by` as the one that `config` describes.

    Args:
        by: `active_flops`, `total_params` or `memory`
    """
    first = config["model"].get("d_ff")
    if first is None:
        raise Refused("this model has no d_ff to choose", "compare")
    at_first, at_twice = (_amount(dense_of(config, d_ff), by) for d_ff in (first, 2 * first))
    a_step = (at_twice - at_first) / first
    if a_step == 0:  # no layer has experts
        return int(first)
    found = round(first + (_amount(config, by) - at_first) / a_step)
    if found < 1:
        raise Refused("no dense model of this shape is as small", "compare")
    return found


def _amount(config: dict[str, Any], by: str) -> float:
    costs = _account(config)
    if by == "memory":
        known = {**config, "hardware": {**config["hardware"], **machine_here(config)}}
        return peak_memory(known, costs.params_total, _VOCABULARY)
    return float(costs.params_total if by == "total_params" else costs.flops_per_token)


def _account(config: dict[str, Any]) -> Account:
    found = account(config, _VOCABULARY)
    if found is not None:
        return found
    if config["model"].get("init_from") is not None:
        raise Refused(
            "weights to start from (model.init_from) bring widths of their own", "compare"
        )
    raise Refused("what this model costs is known only when it is trained", "compare")
