"""How fast a training step is here, as ratios measured in one run.

    python experiments/speed/bench.py [--rounds 7] [--model tiny] [--batch 16] [--json FILE]

The variants take turns, step by step, so that a noisy machine is noisy for all of them; figures
are medians, ratios are medians of the paired ratios to the dense model. The share of the machine is
model FLOPs per second over those of a large matrix product in the same precision, measured in the
same run.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import account_for, build_model
from llm.config.choices import conf_folder
from llm.config.instantiate import instantiate
from llm.hardware.blocks import compile_blocks
from llm.hardware.machine import DTYPES, Machine, worth_compiling

VARIANTS = {
    "dense": ["moe=dense"],
    "switch, 4 experts": ["moe=switch"],
    "switch, 8 experts": ["moe=switch", "moe.n_experts=8"],
    "topk, 4 experts": ["moe=topk"],
}


def peak(machine: Machine, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product in the machine's precision."""
    dtype = DTYPES[machine.precision]
    a, b = torch.randn(4096, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    a, b = a.to(machine.device), b.to(machine.device)
    a @ b
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        a @ b
        _wait(machine)
        best = max(best, 2 * 4096 * 1024 * 1024 / (time.perf_counter() - begun))
    return best


def _wait(machine: Machine) -> None:
    if machine.device == "cuda":
        torch.cuda.synchronize()


class Variant:
    """One configuration's model, compiled where a long run's is, and a step of it."""

    def __init__(self, overrides: list[str], model: str, batch: int, vocab: int):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = compose("train", [f"model={model}", *overrides])
        config: Any = OmegaConf.to_container(composed, resolve=True)
        hardware = instantiate(config["hardware"], "hardware")
        self.machine: Machine = hardware.resolve()
        hardware.start(self.machine, {})
        self.model = build_model(config, vocab, device=self.machine.device)
        self.cost = account_for(config, self.model)
        if worth_compiling(self.machine.device, math.inf):
            compile_blocks(self.model)
        self.optimizer = instantiate(config["optimizer"], "optimizer").optimizer(self.model)
        shape = (batch, config["model"]["max_seq_len"] + 1)
        self.ids = torch.randint(vocab, shape, device=self.machine.device)
        self.tokens = batch * config["model"]["max_seq_len"]

    def step(self) -> float:
        """Seconds of forward, backward and update."""
        begun = time.perf_counter()
        with self.machine.autocast():
            output = self.model(self.ids[:, :-1], self.ids[:, 1:])
        (output.loss_sum / self.tokens + sum(output.aux.values())).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _wait(self.machine)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--json", type=Path, default="outputs/bench/steps.json", help="of figures")
    given = parser.parse_args()
    variants = {
        name: Variant(overrides, given.model, given.batch, given.vocab)
        for name, overrides in VARIANTS.items()
    }
    machine = next(iter(variants.values())).machine
    top = peak(machine)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(given.rounds + 2):
        for name, variant in variants.items():
            seconds = variant.step()
            if turn >= 2:  # the first two warm up
                times[name].append(seconds)
    print(
        f"{given.model}, batch {given.batch}, vocabulary {given.vocab}, {machine.device} "
        f"{machine.precision}, {torch.get_num_threads()} threads, peak {top / 1e9:.0f} GFLOP/s"
    )
    print(f"{'variant':20} {'ms/step':>8} {'tokens/s':>9} {'of dense':>9} {'of peak':>8}")
    results: dict[str, Any] = {
        **vars(given),
        "device": machine.device,
        "precision": machine.precision,
        "threads": torch.get_num_threads(),
        "peak": top,
        "variants": {},
    }
    del results["json"]
    for name, variant in variants.items():
        middle = statistics.median(times[name])
        pairs = zip(times[name], times["dense"], strict=True)
        ratio = statistics.median(mine / dense for mine, dense in pairs)
        rate = variant.tokens / middle
        share = rate * variant.cost.flops_per_token / top
        results["variants"][name] = {"seconds": middle, "of_dense": ratio, "of_peak": share}
        print(f"{name:20} {middle * 1e3:8.0f} {rate:9,.0f} {ratio:9.2f} {share:8.0%}")
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
