"""The dense partner of a model with experts, which `compare` asks for.

The same config with `moe=dense`, and with the whole number `model.d_ff` at which both are as equal
as can be in one thing:

    active_flops   operations that a token of training really costs (`llm.model.accounting`)
    total_params   parameters in all, used by a token or not
    memory         bytes of training, by the estimate of `llm.plan.memory`
    time           seconds of a training step, as measured on this machine (`llm.plan.timing`)
"""

from dataclasses import replace

from llm.config.validate import Validated
from llm.plan.timing import width_of_equal_time
from llm.plan.width import DENSE, dense_of, equal_width, settings


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
    width = width_of_equal_time(validated) if by == "time" else equal_width(config, by)
    keys = settings(config["model"], width)
    told = " ".join(f"model.{key}={value}" for key, value in keys.items())
    return Validated(
        dense_of(config, width),
        dense_of(validated.identity, width),
        {**validated.chosen, "moe": "dense"},
        [*validated.notes, f"compare={by}: this is moe=dense {told}"],
    )
