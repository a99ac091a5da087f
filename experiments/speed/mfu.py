"""How much of a GPU a training step uses, as it is and compiled, and where the rest goes.

    python experiments/speed/mfu.py [--model base] [--batch 16] [--datasheet 989e12] [overrides …]

One step is forward, backward and update of `batch` sequences of the model's length, GPT-2's
vocabulary, in the precision that `hardware=auto` decides on. Model FLOPs (6 a weight and token, and
those of attention, the causal half) per second are given as shares of what a matrix product reaches
here, measured in the same run, and of the data sheet's figure. The variants take turns; a time is a
median. A profile of three steps names the kernels that take longest.
"""

import argparse
import json
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
from llm.hardware.machine import Machine
from llm.hardware.peak import measured_peak
from llm.hardware.stopwatch import memory_peak

#: GPT-2's, as the run has it: odd, so that what is done about that is measured, too.
VOCAB = 50_257


class Step:
    """One model with its optimizer; call it for a step, and get its seconds."""

    def __init__(self, overrides: list[str], batch: int, compiled: bool):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
        hardware = instantiate(config["hardware"], "hardware")
        self.machine: Machine = hardware.resolve()
        hardware.start(self.machine, {"compile": compiled})
        self.model = build_model(config, VOCAB, device=self.machine.device)
        self.cost = account_for(config, self.model)
        if compiled:
            compile_blocks(self.model)
        self.optimizer = instantiate(config["optimizer"], "optimizer").optimizer(self.model)
        seq_len = config["model"]["max_seq_len"]
        self.ids = torch.randint(VOCAB, (batch, seq_len + 1), device=self.machine.device)
        self.tokens = batch * seq_len

    def __call__(self) -> float:
        begun = time.perf_counter()
        with self.machine.autocast():
            output = self.model(self.ids[:, :-1], self.ids[:, 1:])
        (output.loss_sum / self.tokens + sum(output.aux.values())).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.machine.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def kernels(step: Step, rows: int) -> str:
    """The kernels that three steps spend most on."""
    with torch.profiler.profile() as profile:
        for _ in range(3):
            step()
    clock = "self_device_time_total" if step.machine.device == "cuda" else "self_cpu_time_total"
    return profile.key_averages().table(sort_by=clock, row_limit=rows, max_name_column_width=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--datasheet", type=float, default=989e12, help="FLOPs a second")
    parser.add_argument("--kernels", type=int, default=15, help="lines of the profile")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("overrides", nargs="*", help="as of llm.train")
    given = parser.parse_args()
    chosen = [f"model={given.model}", *given.overrides]
    recipes = {
        "Muon": ([*chosen, "optimizer=muon"], False),
        "Muon, compiled": ([*chosen, "optimizer=muon"], True),
        "AdamW, compiled": ([*chosen, "optimizer=adamw"], True),
    }
    steps = {
        name: Step(overrides, given.batch, compiled)
        for name, (overrides, compiled) in recipes.items()
    }
    machine = next(iter(steps.values())).machine
    top = measured_peak(machine)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.rounds + 3):
        for name, step in steps.items():
            seconds = step()
            if turn >= 3:  # the first compile and warm up
                times[name].append(seconds)
    device = torch.cuda.get_device_name() if machine.device == "cuda" else machine.device
    memory = memory_peak(machine.device) / 2**30
    print(f"{' '.join(chosen)}, batch {given.batch}, {device}, {machine.precision}")
    print(f"a matrix product reaches {top / 1e12:.3g} TFLOP/s; all of these took {memory:.1f} GiB")
    print(f"{'variant':18} {'ms/step':>8} {'tokens/s':>10} {'of that':>8} {'of data sheet':>14}")
    results: dict[str, Any] = {"device": device, "peak": top}
    for name, step in steps.items():
        middle = statistics.median(times[name])
        rate = step.tokens * step.cost.flops_per_token / middle
        results[name] = {"seconds": times[name], "of_peak": rate / top}
        print(
            f"{name:18} {middle * 1e3:8.1f} {step.tokens / middle:10,.0f} {rate / top:8.1%} "
            f"{rate / given.datasheet:14.1%}"
        )
    print(kernels(steps["Muon, compiled"], given.kernels))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
