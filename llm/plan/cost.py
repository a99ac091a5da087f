"""What a job costs: parameters and operations of its model, and its memory.

Models are built on PyTorch's meta device, without memory, by the classes that training uses, so
that there is no second account to keep in step with them.
"""

import json
from functools import cache
from typing import Any

from llm.build import account_for, build_model
from llm.config.errors import Refused
from llm.config.instantiate import instantiate
from llm.config.schema import locate
from llm.layers.cross_entropy import chunk_rows
from llm.model.accounting import Account
from llm.optimizer.recipe import Recipe
from llm.sweep.answer import resolved_here

#: Ids of a vocabulary that is fitted to text which has not been read yet.
_GUESS = 256
#: A process with PyTorch, the program, and what draws the curve: measured, Linux, CPU build.
_PROCESS = 410e6


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
    """Device and precision of a job; Refused where that device is not here."""
    facts = resolved_here(config["hardware"])
    if facts is None:
        raise Refused("that device is not here; take hardware=cpu", "hardware")
    return facts


def peak_memory(config: dict[str, Any], params_total: int, vocab_size: int) -> float:
    """Bytes at the peak: on a GPU those of the GPU, on a CPU those of the process.

    Weights, gradients and the optimizer's states, what backward keeps of each layer for every token
    of a micro-step, the logits of one chunk and the weight gradient of the head, and on a CPU the
    process itself and one copy of what a checkpoint writes.

    Args:
        config: with what `auto` became under `hardware`
    """
    model, moe, train = config["model"], config["moe"], config["train"]
    micro = train["batch_size"] * model["max_seq_len"]
    device, precision = (config["hardware"][key] for key in ("device", "precision"))
    half = precision in ("bf16", "fp16")
    weights = 4.0 * params_total
    states = _states(config, params_total, vocab_size)
    top_k = moe.get("top_k", 1)
    gated = model.get("activation") in ("swiglu", "geglu")
    d_model, d_ff = model["d_model"], model["d_ff"]
    finer = moe.get("granularity", 1)
    hidden = d_ff * (4 if gated else 2) * (top_k + moe.get("n_shared", 0) / finer)
    routed = 3 * d_model * top_k * finer if "n_experts" in moe else 0
    per_token = (2 if half else 4) * (12 * d_model + hidden + routed)
    activations = micro * (model["n_layers"] * per_token + 16 * d_model)
    rows = min(micro, chunk_rows(vocab_size, device))
    head = 4.0 * (2.5 * rows * vocab_size + vocab_size * d_model)
    on_device = 2 * weights + states + activations + head
    return on_device if device != "cpu" else on_device + weights + states + _PROCESS


def _states(config: dict[str, Any], params_total: int, vocab_size: int) -> float:
    """Bytes of the optimizer's states: of embedding and head, and of all else as of matrices."""
    try:
        recipe = locate(config["optimizer"]["_target_"], config["plugins"])
    except Refused:  # a former run's, of a plugin that this command does not list
        recipe = Recipe
    tables = 1 if config["model"].get("tie_embeddings") else 2
    n_rows = min(tables * vocab_size * config["model"]["d_model"], params_total)
    matrices = (params_total - n_rows) * recipe.state_bytes("matrix")
    return float(n_rows * recipe.state_bytes("embedding") + matrices)
