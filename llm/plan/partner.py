"""The dense partner of a model with experts, which `compare` asks for.

The same config with `moe=dense`, and with the whole number `model.d_ff` at which both are as equal
as can be in one thing:

    active_flops   operations that a token of training really costs (`llm.model.accounting`)
    total_params   parameters in all, used by a token or not
    memory         bytes of training, by the estimate of `llm.plan.memory`
    time           seconds of a training step, as measured on this machine (`llm.plan.timing`)

The first three are straight lines in d_ff, so two widths tell all others. One more of d_ff is
6 · d_model · (2, or 3 where the activation is gated) operations a token and layer, or a sixth of
that in parameters, and the partner is off by half of it at most. The vocabulary costs both the
same, so partners are known before there are any data.

Where dense layers among the experts have a width of their own (`model.d_ff_dense`), they keep it.
Otherwise all layers of the partner are equally wide, as in any dense model, and which of them had
experts is no part of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llm.config.errors import Refused
from llm.config.validate import Validated
from llm.model.accounting import Account
from llm.plan.cost import account, machine_here
from llm.plan.memory import peak_memory

#: What `moe=dense` is once it is validated.
DENSE = {"_target_": "llm.layers.feed_forward.FeedForward"}
#: Any will do.
_VOCABULARY = 256


def partner(validated: Validated) -> Validated:
    """The partner that `compare` names; `validated` itself where that has nothing to compare.

    It is what `moe=dense model.d_ff=N` would have been, but for the key `compare`, which is no part
    of the identity.

    Raises:
        Refused: there is no such partner, or its width is not known here yet
    """
    config, by = validated.config, validated.config["compare"]
    if config["moe"] == DENSE:
        note = f"compare={by} has no effect with moe=dense"
        idle = {**config, "compare": None}
        return replace(validated, config=idle, notes=[*validated.notes, note])
    keys = settings(config["model"], width(validated))
    told = " ".join(f"model.{key}={value}" for key, value in keys.items())
    return Validated(
        _dense(config, keys),
        _dense(validated.identity, keys),
        {**validated.chosen, "moe": "dense"},
        [*validated.notes, f"compare={by}: this is moe=dense {told}"],
    )


def settings(model: dict[str, Any], d_ff: int) -> dict[str, int]:
    """The keys of the node `model` by which a partner differs from its model with experts."""
    keys = {"d_ff": d_ff}
    if model.get("d_ff_dense") is None:
        keys |= {key: n for key, n in {"moe_every": 1, "dense_first": 0}.items() if key in model}
    return {key: n for key, n in keys.items() if key == "d_ff" or model[key] != n}


def width(validated: Validated) -> int:
    """The partner's `model.d_ff`."""
    config, by = validated.config, validated.config["compare"]
    if by == "time":
        from llm.plan.timing import width_of_equal_time

        return width_of_equal_time(validated)
    return equal_width(config, _AMOUNTS[by])


def equal_width(config: dict[str, Any], amount: Callable[[dict[str, Any]], float]) -> int:
    """The d_ff at which the dense model's `amount` is nearest to that of `config`."""
    first = config["model"].get("d_ff")
    if first is None:
        raise Refused("this model has no d_ff to choose", "compare")
    at_first, at_twice = (amount(dense_of(config, d_ff)) for d_ff in (first, 2 * first))
    a_step = (at_twice - at_first) / first
    if a_step == 0:  # no layer has experts
        return int(first)
    found = round(first + (amount(config) - at_first) / a_step)
    if found < 1:
        raise Refused("no dense model of this shape is as small", "compare")
    return found


def dense_of(config: dict[str, Any], d_ff: int) -> dict[str, Any]:
    """The dense model of this shape and width."""
    return _dense(config, settings(config["model"], d_ff))


def _dense(config: dict[str, Any], keys: dict[str, int]) -> dict[str, Any]:
    return {**config, "moe": dict(DENSE), "model": {**config["model"], **keys}}


def _active_flops(config: dict[str, Any]) -> float:
    return float(_account(config).flops_per_token)


def _total_params(config: dict[str, Any]) -> float:
    return float(_account(config).params_total)


def _memory(config: dict[str, Any]) -> float:
    known = {**config, "hardware": machine_here(config)}
    return peak_memory(known, _account(config).params_total, _VOCABULARY)


_AMOUNTS = {"active_flops": _active_flops, "total_params": _total_params, "memory": _memory}


def active_flops_width(config: dict[str, Any]) -> int:
    """The width of equal active FLOPs: where a search for any other begins."""
    return equal_width(config, _active_flops)


def _account(config: dict[str, Any]) -> Account:
    found = account(config, _VOCABULARY)
    if found is not None:
        return found
    if config["model"].get("init_from") is not None:
        raise Refused(
            "weights to start from (model.init_from) bring widths of their own", "compare"
        )
    raise Refused("what this model costs is known only when it is trained", "compare")
