"""How much memory a job takes at its peak, and whether the machine has it."""

from typing import Any

import torch

from llm.config.errors import Refused
from llm.config.schema import locate
from llm.hardware.limits import free_memory, total_memory
from llm.hardware.world import World
from llm.layers.cross_entropy import chunk_rows
from llm.model.position import Position
from llm.optimizer.recipe import Recipe

#: A process with PyTorch, the program, and what draws the curve: measured, Linux, CPU build.
_PROCESS = 410e6
#: What takes so many times the memory that there is cannot fit, however rough the estimate.
_SURE = 1.5


def peak_memory(config: dict[str, Any], params_total: int, vocab_size: int) -> float:
    """Bytes at the peak: on a GPU those of the GPU, on a CPU those of the process.

    Weights, gradients and the optimizer's states, what backward keeps of each layer for every token
    of a micro-step, scores and masks where they are written out, the logits of one chunk and the
    weight gradient of the head, what the optimizer's step takes in passing, and on a CPU the
    process itself and one copy of what a checkpoint writes: a CPU's freed memory stays with the
    process, so what comes one after the other adds up. Steps of ten kinds took from 0.7 to 1.9
    times that; of eight models, Muon and AdamW alike, from 0.8 to 1.0 times.

    Args:
        config: with what `auto` became under `hardware`
    """
    model, moe, train = config["model"], config["moe"], config["train"]
    micro = train["batch_size"] * model["max_seq_len"]
    device, precision = (config["hardware"][key] for key in ("device", "precision"))
    half = precision in ("bf16", "fp16")
    weights = 4.0 * params_total
    states, step = _of_optimizer(config, params_total, vocab_size)
    top_k = moe.get("top_k", 1)
    gated = model.get("activation") in ("swiglu", "geglu")
    d_model, d_ff = model["d_model"], model["d_ff"]
    finer = moe.get("granularity", 1)
    hidden = d_ff * (4 if gated else 2) * (top_k + moe.get("n_shared", 0) / finer)
    routed = 3 * d_model * top_k * finer if "n_experts" in moe else 0
    per_token = (2 if half else 4) * (12 * d_model + hidden + routed)
    kept = model["n_layers"] * per_token
    if config["hardware"].get("recompute"):  # of all layers but one their input alone
        kept = per_token + model["n_layers"] * 8 * d_model
    activations = micro * (kept + 16 * d_model) + _squares(config)
    rows = min(micro, chunk_rows(vocab_size, device))
    head = 4.0 * (2.5 * rows * vocab_size + vocab_size * d_model)
    on_device = 2 * weights + states + activations + head + step
    return on_device if device != "cpu" else on_device + weights + states + _PROCESS


def _of_optimizer(
    config: dict[str, Any], params_total: int, vocab_size: int
) -> tuple[float, float]:
    """Bytes of the optimizer's states, and of its step: embedding and head, and all else as
    matrices."""
    try:
        recipe = locate(config["optimizer"]["_target_"], config["plugins"])
    except Refused:  # a former run's, of a plugin that this command does not list
        recipe = Recipe
    tables = 1 if config["model"].get("tie_embeddings") else 2
    n_rows = min(tables * vocab_size * config["model"]["d_model"], params_total)
    roles = (("embedding", n_rows), ("matrix", params_total - n_rows))
    states = sum(n * recipe.state_bytes(role) for role, n in roles)
    return float(states), float(sum(n * recipe.step_bytes(role) for role, n in roles))


def _squares(config: dict[str, Any]) -> float:
    """Bytes of what has a number for each query and key, where no fused kernel goes without.

    Dropout and soft-caps write out the scores of each head, of which 2.5 numbers are kept in each
    layer; they, documents apart and biases of positions need a mask, which the layers share.
    """
    model, rows = config["model"], config["train"]["batch_size"]
    written = model.get("dropout") or model.get("attention_softcap")
    apart, biased = config["data"].get("document_mask"), _biased(model.get("position", {}))
    scores = (2.5 * model["n_layers"] + 10) * rows * model["n_heads"] if written else 0.0
    masks = 2.0 * model["n_heads"] if biased else 2.0 if apart or written else 0.0
    seq_len, window = model["max_seq_len"], model.get("window")
    windows = window if isinstance(window, list) else [window]
    keys = seq_len if None in windows else min(seq_len, 2 * max(windows))
    return 4.0 * seq_len * keys * (scores + masks * (rows if apart else 1))


def _biased(node: dict[str, Any]) -> bool:
    """Whether a position encoding adds to the scores; those of plugins are taken not to."""
    try:
        return locate(node.get("_target_")).bias is not Position.bias
    except (Refused, AttributeError):
        return False


def check_memory(config: dict[str, Any], params_total: int, vocab_size: int, world: World) -> str:
    """A warning where a step seems to take more memory than is free, "" where it does not.

    Args:
        config: with `auto` resolved under `hardware`
    Raises:
        Refused: it is sure to take more than this machine has
    """
    if not config["model"]["_target_"].startswith("llm."):  # whose keys nobody knows
        return ""
    hardware, rows = config["hardware"], config["train"]["batch_size"] // world.size
    device = hardware["device"]
    rows = 1 if hardware["find_batch"] else rows
    sharded = world.size if hardware["parallel"] == "fsdp" else hardware["expert_parallel"]
    part = {**config, "train": {**config["train"], "batch_size": rows}}
    need = peak_memory(part, params_total // sharded, vocab_size)
    free, total = free_memory(), total_memory()
    if device == "cpu":
        need *= world.local_size
    elif device == "cuda":
        free, total = map(float, torch.cuda.mem_get_info())
    has = f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB of them free"
    told = (
        f"memory: a step takes about {need / 1e9:.1f} GB, and this machine has {has}; lower "
        "train.batch_size (train.grad_accum_steps makes up for it), model.max_seq_len or the size "
        "of the model, or add hardware.recompute=true"
    )
    if need > _SURE * total:
        raise Refused(told)
    return told if need > free else ""
