"""What a job costs: parameters and operations of its model.

Models are built on PyTorch's meta device, without memory, by the classes that training uses, so
that there is no second account to keep in step with them.
"""

import json
from functools import cache
from typing import Any

from llm.build import account_for, build_model
from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.model.accounting import Account

#: Ids of a vocabulary that is fitted to text which has not been read yet.
_GUESS = 256


def account(config: dict[str, Any], vocab_size: int) -> Account | None:
    """Parameters and operations; None where only the job can tell.

    So it is where weights to start from bring the architecture, and where a plugin's constructor
    fails. Raises Refused where a constructor does.
    """
    if config["model"].get("init_from") is not None:
        return None
    nodes = json.dumps({room: config[room] for room in ("model", "moe")}, sort_keys=True)
    return _account(nodes, vocab_size, tuple(config["plugins"]))


@cache
def _account(nodes: str, vocab_size: int, plugins: tuple[str, ...]) -> Account | None:
    """The same; models that many jobs share are built once."""
    config = {"seed": 0, **json.loads(nodes)}
    try:
        return account_for(config, build_model(config, vocab_size, plugins, device="meta"))
    except Refused:
        raise
    except Exception:  # a mistake of the plugin's author: the job will show it
        return None


def vocabulary(config: dict[str, Any], manifest: dict[str, Any]) -> tuple[int, bool]:
    """Its size, and whether that is known: prepared, fixed, or of a corpus with known words.

    Args:
        manifest: of the prepared data, empty where they are not prepared yet
    """
    if manifest:
        return manifest["vocab_size"], True
    nodes = json.dumps({room: config[room] for room in ("data", "tokenizer")}, sort_keys=True)
    return _vocabulary(nodes, tuple(config["plugins"]))


@cache
def _vocabulary(nodes: str, plugins: tuple[str, ...]) -> tuple[int, bool]:
    node = json.loads(nodes)["tokenizer"]
    asked = int(node.get("vocab_size") or node.get("max_vocab_size") or _GUESS)
    try:
        tokenizer = instantiate(node, "tokenizer", plugins)
        if tokenizer.needs_fit:
            corpus = instantiate(json.loads(nodes)["data"], "data", plugins)
            if corpus.pieces is None:
                return asked, False
            tokenizer.fit((), corpus.pieces)
        return tokenizer.vocab_size, True
    except Exception:  # a mixture's, or one that has to be downloaded: the job will tell
        return asked, False


def machine_here(config: dict[str, Any]) -> dict[str, Any]:
    """Device and precision of a job. Refused as the job would be where it cannot run here."""
    facts: dict[str, Any] = instantiate(config["hardware"], "hardware").resolve().facts()
    return facts
