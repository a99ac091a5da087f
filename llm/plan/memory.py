"""How much memory a job will take at its peak."""

from typing import Any

from llm.layers.cross_entropy import chunk_rows

#: A process with PyTorch, the program, and what draws the curve: measured, Linux, CPU build.
_PROCESS = 410e6


def peak_memory(config: dict[str, Any], params_total: int, vocab_size: int, device: str) -> float:
    """Bytes: on a GPU those of the GPU, on a CPU those of the process.

    Weights, gradients and the optimizer's two moments (Muon keeps one of matrices), what backward
    keeps of each layer for every token of a micro-step, the logits of one chunk and the weight
    gradient of the head, and on a CPU the process itself and one copy of what a checkpoint writes.
    """
    model, moe, train = config["model"], config["moe"], config["train"]
    micro = train["batch_size"] * model["max_seq_len"]
    half = config["hardware"].get("precision") in ("bf16", "fp16")
    moments = 1.2 if config["optimizer"]["_target_"].endswith("Muon") else 2.0
    states = 4.0 * params_total * (2.0 + moments)
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
    if device != "cpu":
        return states + activations + head
    checkpoint = 4.0 * params_total * (1.0 + moments)
    return _PROCESS + states + checkpoint + activations + head
