"""A training step against nanoGPT's own model and optimizer, and the losses both reach.

    git clone https://github.com/karpathy/nanoGPT
    python experiments/speed/nanogpt.py --nanogpt nanoGPT [--vocab 256 50304] [--rounds 7]
    python experiments/speed/nanogpt.py --nanogpt nanoGPT --text tinyshakespeare.txt --losses 300

Steps: 6 layers × 384, 256 tokens, batch 16; the variants take turns, figures are medians, ratios
medians of paired ratios. nanoGPT runs as its README says for a CPU (float32, not compiled), and in
the best setting it has (compiled, and bfloat16 where the device multiplies it in hardware); the
former in a process of its own, the latter with our allocator. Shares
of the peak are model FLOPs per second over those of a large matrix product in the precision that
the device has products for, measured in the same run; a profile says what a step of ours spends its
time on.
Losses: the same batches of 12 × 64 tokens, learning rates and weight decay for both, three seeds
each, validated on the same rows; the text is read as bytes for a vocabulary of 256, otherwise as
GPT-2's tokens.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.speed.bench import peak
from llm.build import account_for, build_model
from llm.config.choices import conf_folder
from llm.config.instantiate import instantiate
from llm.hardware.blocks import compile_blocks
from llm.hardware.machine import Machine, worth_compiling
from llm.tokenizer.gpt2 import GPT2

STYLE = ["model=small", "model/style=gpt2", "model/position=learned", "moe=dense"]
SIZE = {"d_model": 384, "n_layers": 6, "n_heads": 6, "d_ff": 1536, "init_std": 0.02}
LR, BETAS, DECAY = 1e-3, (0.9, 0.99), 0.1
#: What an operator's time counts as, by a part of its name; the first that fits.
PARTS = {
    "attention": ("attention",),
    "matrix products": ("mm", "linear"),
    "optimizer": ("adamw", "_foreach"),
    "norms": ("layer_norm",),
    "GELU": ("gelu",),
}
#: What the mean losses of three seeds may differ by.
AGREED = 0.01

Step = Callable[[torch.Tensor], Any]  # ids (B, T + 1): one forward, backward and update


def nanogpt_module(folder: Path) -> Any:
    """nanoGPT's model.py, run from where it lies."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").exists():
        raise SystemExit(f"there is no model.py in {folder}: clone nanoGPT there")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


class Theirs:
    """nanoGPT's model, its optimizer and the body of its loop."""

    def __init__(self, module: Any, vocab: int, seq_len: int, machine: Machine, best: bool):
        torch.manual_seed(0)
        config = module.GPTConfig(
            block_size=seq_len, vocab_size=vocab, n_layer=6, n_head=6, n_embd=384, bias=True
        )
        self.model = module.GPT(config).to(machine.device)
        self.optimizer = self.model.configure_optimizers(DECAY, LR, BETAS, machine.device)
        self.run = torch.compile(self.model) if best else self.model
        self.within: Callable[[], AbstractContextManager[Any]] = (
            machine.autocast if best else nullcontext
        )

    def step(self, ids: torch.Tensor) -> None:
        with self.within():
            _, loss = self.run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, ids: torch.Tensor) -> float:
        return float(self.model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1])


class Ours:
    """The same shapes in our model, compiled where a long run is."""

    def __init__(self, vocab: int, seq_len: int, machine: Machine, seed: int = 0):
        size = [f"++model.{key}={value}" for key, value in SIZE.items()]
        overrides = [*STYLE, *size, f"model.max_seq_len={seq_len}", "optimizer=adamw"]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
        config["seed"] = seed
        config["optimizer"] |= {"lr": LR, "betas": list(BETAS), "weight_decay": DECAY}
        self.machine = machine
        self.model = build_model(config, vocab, device=machine.device)
        self.cost = account_for(config, self.model)
        if worth_compiling(machine.device, math.inf):
            compile_blocks(self.model)
        self.optimizer = instantiate(config["optimizer"], "optimizer").optimizer(self.model)

    def step(self, ids: torch.Tensor) -> None:
        with self.machine.autocast():
            output = self.model(ids[:, :-1], ids[:, 1:])
        (output.loss_sum / ids[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, ids: torch.Tensor) -> float:
        return float(self.model(ids[:, :-1], ids[:, 1:]).loss_sum) / ids[:, 1:].numel()


class Apart:
    """nanoGPT's README setting in a process of its own, whose allocator is as PyTorch has it: ours
    keeps freed memory, which would serve both."""

    def __init__(self, folder: Path, vocab: int, seq_len: int, machine: Machine):
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        asked = (other, folder, vocab, seq_len, machine, torch.get_num_threads())
        context.Process(target=_steps_when_asked, args=asked, daemon=True).start()

    def step(self, ids: torch.Tensor) -> None:
        self.line.send(ids.cpu().numpy())
        self.line.recv()

    def end(self) -> None:
        self.line.send(None)


def _steps_when_asked(
    line: Any, folder: Path, vocab: int, seq_len: int, machine: Machine, threads: int
) -> None:
    torch.set_num_threads(threads)
    theirs = Theirs(nanogpt_module(folder), vocab, seq_len, machine, best=False)
    while (ids := line.recv()) is not None:
        theirs.step(torch.from_numpy(ids).to(machine.device))
        if machine.device == "cuda":
            torch.cuda.synchronize()
        line.send(True)


def where_time_goes(variant: Ours, ids: torch.Tensor) -> dict[str, float]:
    """Shares of a step's time, by kind of operator, from a profile of three steps."""
    with torch.profiler.profile() as profile:
        for _ in range(3):
            variant.step(ids)
    clock = "self_device_time_total" if ids.is_cuda else "self_cpu_time_total"
    spent = dict.fromkeys([*PARTS, "all else"], 0.0)
    for event in profile.key_averages():
        if event.key.startswith("aten::"):
            fits = (part for part, names in PARTS.items() if any(n in event.key for n in names))
            spent[next(fits, "all else")] += getattr(event, clock)
    total = sum(spent.values())
    return {part: time / total for part, time in spent.items()}


def steps(given: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """Milliseconds a step at each vocabulary."""
    module, results = nanogpt_module(given.nanogpt), {}
    top = peak(machine)
    for vocab in given.vocab:
        ours = Ours(vocab, 256, machine)
        variants: dict[str, Any] = {
            "ours": ours,
            "nanoGPT, README": Apart(given.nanogpt, vocab, 256, machine),
            "nanoGPT, best": Theirs(module, vocab, 256, machine, best=True),
        }
        ids = torch.randint(vocab, (16, 257), device=machine.device)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(given.rounds + 3):
            for name, variant in variants.items():
                begun = time.perf_counter()
                variant.step(ids)
                if machine.device == "cuda":
                    torch.cuda.synchronize()
                if turn >= 3:  # the first compile and warm up
                    times[name].append(time.perf_counter() - begun)
        print(
            f"vocabulary {vocab:,}, {machine.device} {machine.precision}, "
            f"{torch.get_num_threads()} threads, {top / 1e9:.0f} GFLOP/s"
        )
        for name, series in times.items():
            middle = statistics.median(series)
            pairs = zip(series, times["ours"], strict=True)
            ratio = statistics.median(theirs / our for theirs, our in pairs)
            share = 16 * 256 * ours.cost.flops_per_token / middle / top
            print(f"  {name:16} {middle * 1e3:8.0f} ms  {ratio:5.2f} of ours  {share:4.0%} of peak")
            results[f"{name}, {vocab}"] = {"seconds": series, "of_ours": ratio, "of_peak": share}
        variants["nanoGPT, README"].end()
        goes = where_time_goes(ours, ids)
        told = ", ".join(f"{part} {share:.0%}" for part, share in goes.items())
        print(f"  ours spends it on {told}")
        results[f"ours, {vocab}"]["goes_to"] = goes
    return {"peak": top, "precision": machine.precision, **results}


def losses(given: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """Validation losses after the same batches, three seeds at each vocabulary."""
    module, results = nanogpt_module(given.nanogpt), {}
    for vocab in given.vocab:
        ids = torch.tensor(read(given.text, vocab), device=machine.device)
        cut, seq_len, batch = int(len(ids) * 0.9), 64, 12
        held_out = ids[cut : cut + 64 * 257].view(-1, 257)[:, : seq_len + 1]
        found: dict[str, list[float]] = {"ours": [], "nanoGPT": []}
        for seed in range(3):
            torch.manual_seed(seed)
            both = {
                "ours": Ours(vocab, seq_len, machine, seed),
                "nanoGPT": Theirs(module, vocab, seq_len, machine, best=False),
            }
            for name, variant in both.items():
                random = torch.Generator().manual_seed(seed)
                for step in range(given.losses):
                    turn = math.pi * step / given.losses
                    rise, fall = (step + 1) / 50, 0.55 + 0.45 * math.cos(turn)
                    for group in variant.optimizer.param_groups:
                        group["lr"] = LR * min(rise, fall)
                    starts = torch.randint(cut - seq_len - 1, (batch,), generator=random)
                    variant.step(torch.stack([ids[i : i + seq_len + 1] for i in starts]))
                parts = [variant.loss(rows) for rows in held_out.split(8)]
                found[name].append(statistics.mean(parts))
                print(f"  {vocab:6,}, seed {seed}, {name:8} validation loss {found[name][-1]:.4f}")
        gap = statistics.mean(found["ours"]) - statistics.mean(found["nanoGPT"])
        verdict = "agree" if abs(gap) <= AGREED else "DIFFER"
        print(f"vocabulary {vocab:,}, means of three seeds {verdict}: ours − nanoGPT {gap:+.4f}")
        results[str(vocab)] = {**found, "difference": gap}
    return results


def read(text: Path, vocab: int) -> list[int]:
    """The text's ids: bytes where the vocabulary has no room for GPT-2's."""
    if vocab == 256:
        return list(text.read_bytes())
    return GPT2().encode(text.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of it")
    parser.add_argument("--vocab", type=int, nargs="+", default=[256, 50304])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--losses", type=int, help="compare losses after so many steps instead")
    parser.add_argument("--text", type=Path, help="what --losses trains on")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("train").hardware)
    hardware = instantiate(node, "hardware")
    machine: Machine = hardware.resolve()
    hardware.start(machine, {})
    results = losses(given, machine) if given.losses else steps(given, machine)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
