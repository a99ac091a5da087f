"""The one place where rooms meet: from a validated config to a model.

The loop, reopening a run, interchange and planning all build through here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree

from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.layers.noise import number_places
from llm.model.accounting import Account, account
from llm.model.transformer import Output, Transformer

# FSDP looks for the tensors in what a forward pass returns.
_pytree.register_dataclass(Output)


def build_model(
    config: dict[str, Any],
    vocab_size: int,
    plugins: Iterable[str] = (),
    device: torch.device | str = "cpu",
) -> Transformer:
    """The model that `config` describes, initialised from its seed.

    Weights are drawn on the CPU whatever the device, so that they are the same everywhere.

    Args:
        config: validated, with `model`, `moe` and `seed`
        vocab_size: of the tokenizer
        device: "meta" builds without memory, to check and to count
    """
    if config["moe"].get("init") == "upcycle" and not config["model"].get("init_from"):
        raise Refused(
            "is upcycle, which needs a dense checkpoint to start from: model.init_from", "moe.init"
        )
    torch.manual_seed(config["seed"])
    with torch.device("meta" if str(device) == "meta" else "cpu"):
        feed_forward = instantiate(config["moe"], "moe", plugins)
        make = instantiate(config["model"], "model", plugins)
        model = make(vocab_size, feed_forward)
    # What it was made from, so that it can be written in a public format (llm.hf.save).
    model.config = {room: config[room] for room in ("model", "moe")}
    number_places(model)
    return model.to(device)


def account_for(config: dict[str, Any], model: Transformer) -> Account:
    """Parameters and operations of `model` at its training length."""
    return account(model, config["model"]["max_seq_len"])


def caveats(model: Transformer) -> list[str]:
    """Sentences that who trains, evaluates or talks to `model` must read; mostly none."""
    said = (getattr(module, "caveat", None) for module in model.modules())
    return list(dict.fromkeys(caveat for caveat in said if caveat))
