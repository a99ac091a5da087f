"""Run directories as training leaves them, written in a millisecond."""

import json
import math
import random
from pathlib import Path

import yaml

from llm.runs.identity import config_hash

FLOOR = 0.47


def fake_run(
    runs: Path,
    *,
    moe: str = "dense",
    n_experts: int = 4,
    d_model: int = 64,
    d_ff: int = 256,
    seed: int = 1,
    lr: float = 1e-3,
    tokens: int = 1_000_000,
    loss: float | None = None,
    state: str = "finished",
    reason: str | None = None,
    evaluations: int = 8,
    told: dict[str, object] | None = None,
    beside: dict[str, dict[str, object]] | None = None,
    **changes: object,
) -> Path:
    """One run whose loss follows a law, a little noise that the seed draws, and `changes`.

    `told` goes over what run.json says, `beside` into nodes of the config.
    """
    node = {"_target_": "llm.layers.feed_forward.FeedForward"}
    if moe != "dense":
        router = {"_target_": "llm.moe.router.TopKRouter", "renormalize": False}
        node = {"_target_": "llm.moe.layer.MoE", "n_experts": n_experts, "top_k": 1}
        node |= {"router": {**router, "jitter": 0.0, "init_scale": 0.1}}
    active = 12 * 4 * d_model**2
    total = active * (1 if moe == "dense" else 1 + 0.6 * (n_experts - 1))
    config = {
        "seed": seed,
        "train": {"budget": f"{tokens}tok", "batch_size": 8, "checkpoint_every": 7},
        "model": {"_target_": "llm.model.transformer.Transformer", "d_model": d_model}
        | {"n_layers": 4, "max_seq_len": 256, "d_ff": d_ff},
        "moe": node,
        "data": {"_target_": "llm.data.tinytown.source.Tinytown", "documents": 100},
        "tokenizer": {"_target_": "llm.tokenizer.bytes.Bytes"},
        "optimizer": {"_target_": "llm.optimizer.adamw.AdamW", "lr": lr},
        "hardware": {"_target_": "llm.hardware.machine.Hardware", "threads": seed},
        "tracking": {"_target_": "llm.tracking.none.NoTracking"},
        "run": {"existing": "resume", "code_changed": "refuse"},
        "outputs": "outputs",
        "plugins": [],
    } | changes
    for room, keys in (beside or {}).items():
        config[room] = {**config[room], **keys}
    draw = random.Random(f"{d_model} {seed}")

    def at(seen: float) -> float:
        if loss is not None:
            return loss
        size = total**0.6 * active**0.4
        off = 0.02 * math.log10(lr / 2e-3) ** 2
        return FLOOR + 60 / size**0.5 + 800 / seen**0.55 + off + noise

    noise = draw.gauss(0, 0.004)
    mark = config_hash({k: v for k, v in config.items() if k != "outputs"})[:10]
    folder = runs / f"d{d_model}-{moe}-tinytown-{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows, perf = [], []
    for i in range(1, evaluations + 1):
        seen = tokens * i // evaluations
        row = {"step": i, "tokens": seen, "train/loss": at(seen), "val/loss": at(seen)}
        row |= {"val/bpb": at(seen) / 2, "val/floor": FLOOR}
        if moe != "dense":
            row |= {"moe/max_over_mean": 1.1 + 0.1 * draw.random()}
        rows.append(json.dumps(row))
        second = {"step": i, "tokens": seen, "perf/seconds": seen * active / 2e10}
        perf.append(json.dumps(second | {"perf/tokens_per_second": 2e10 / active}))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "perf.jsonl").write_text("\n".join(perf) + "\n")
    facts = {"state": state, "device": "cpu", "precision": "fp32", "params_total": int(total)}
    facts |= {"params_active": active, "flops_per_token": 6 * active, "reason": reason}
    text = config_hash({k: v for k, v in config["data"].items() if k != "path"})
    facts |= {"code_hash": "c", "config_hash": "x", "floor": FLOOR, "text_fingerprint": text}
    facts |= {"data_fingerprint": config_hash({"text": text, "by": config["tokenizer"]})}
    facts |= told or {}
    if state == "finished":
        last = json.loads(rows[-1])
        facts |= {"val_loss": last["val/loss"], "val_bpb": last["val/bpb"], "tokens": tokens}
        facts |= {"excess": last["val/loss"] - FLOOR, "seconds": tokens * active / 2e10}
        facts |= {"steps": evaluations, "best_val_loss": last["val/loss"]}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder
