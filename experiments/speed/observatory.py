"""What seeing the experts costs a run, as ratios measured in one run.

    python experiments/speed/observatory.py [--rounds 200] [--model nano] [--moe topk] [--batch 8]

Steps with and without the collapse alarm take turns, so that a noisy machine is noisy for both; the
figure is the median of the paired ratios, with the quartiles of its bootstrap. The alarm's own call
is timed apart as well, since two ratios of noisy steps tell a difference of a thousandth only after
many rounds. An examination is timed with and without watching, and the file and the picture of each
are spread over the steps between two evaluations. The preflight is timed twice, the first time with
what a process does once.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.config.instantiate import instantiate
from llm.data.batches import Batch
from llm.evaluate import Examination, examine
from llm.hardware.machine import Machine
from llm.moe.alarm import CollapseAlarm, active_experts
from llm.moe.preflight import preflight
from llm.moe.statistics import summarise
from llm.reading import Reading
from llm.report.observatory import Observatory
from llm.tokenizer.bytes import Bytes


def timed(machine: Machine, work: Callable[[], Any]) -> float:
    """Seconds until the device has done it."""
    begun = time.perf_counter()
    work()
    if machine.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def ratio(with_: list[float], without: list[float]) -> str:
    """Median of the paired ratios, and the quartiles of its bootstrap."""
    pairs = [a / b for a, b in zip(with_, without, strict=True)]
    draw = random.Random(0)
    middles = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(500))
    return f"{statistics.median(pairs):.4f} ({middles[125]:.4f} to {middles[375]:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--moe", default="topk")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--eval-every", type=int, default=200)
    parser.add_argument("--eval-tokens", type=int, default=20000)
    given = parser.parse_args()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("train", [f"model={given.model}", f"moe={given.moe}"])
    config: Any = OmegaConf.to_container(composed, resolve=True)
    hardware = instantiate(config["hardware"], "hardware")
    machine: Machine = hardware.resolve()
    hardware.start(machine, {})
    vocab, length = Bytes().vocab_size, config["model"]["max_seq_len"]
    model = build_model(config, vocab, device=machine.device)
    optimizer = instantiate(config["optimizer"], "optimizer").optimizer(model)
    ids = torch.randint(vocab, (given.batch, length + 1), device=machine.device)
    tokens = given.batch * length
    alarm, calls = CollapseAlarm(active_experts(model), tokens), []

    def step(number: int, watched: bool) -> None:
        with machine.autocast():
            output = model(ids[:, :-1], ids[:, 1:])
        (output.loss_sum / tokens + sum(output.aux.values())).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        summarise(output.router)
        if watched:
            calls.append(timed(machine, lambda: alarm.watch(number, output.router["load_E"])))

    first = timed(machine, lambda: preflight(model, vocab, machine.autocast))
    again = timed(machine, lambda: preflight(model, vocab, machine.autocast))
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(given.rounds + 3):
        for watched in (True, False) if turn % 2 else (False, True):
            seconds = timed(machine, lambda w=watched, n=turn: step(n, w))
            if turn >= 3:  # the first ones warm up
                times[watched].append(seconds)
    between = statistics.median(times[False]) * given.eval_every
    name = f"{given.model}, moe={given.moe}, batch {given.batch}, {machine.device}"
    print(f"{name} {machine.precision}, {torch.get_num_threads()} threads")
    print(f"step with the alarm, of one without   {ratio(times[True], times[False])}")
    share = statistics.fmean(calls[3:]) / statistics.median(times[False])
    print(f"the alarm's own call, of a step       {share:.4%}")

    rows = -(-given.eval_tokens // length)
    rng = np.random.default_rng(0)
    ids_RT = rng.integers(0, vocab - 1, (rows, length + 1))
    places = np.zeros((rows, length), np.int64)
    batch = Batch(ids_RT[:, :-1], ids_RT[:, 1:], places, places)
    exam = Examination(batch, 1)
    rows_at_once = {**config, "train": {"batch_size": given.batch}}
    reading = Reading.of(rows_at_once, Bytes(), None, machine.facts())
    with tempfile.TemporaryDirectory() as folder:
        observatory = Observatory(Path(folder), exam, Bytes(), 0, print)
        seen: list[float] = []
        plain: list[float] = []
        report: list[float] = []
        for turn in range(6):
            watch = observatory.watch
            plain.append(timed(machine, lambda: examine(model, exam, reading)))
            seen.append(timed(machine, lambda w=watch: examine(model, exam, reading, watch=w)))
            report.append(timed(machine, lambda n=turn: observatory.report(n, "bench")))
    print(f"examination watched, of one that is not {ratio(seen[1:], plain[1:])}")
    extra = (
        statistics.median(report[1:]) + statistics.median(seen[1:]) - statistics.median(plain[1:])
    )
    print(f"file and picture of an evaluation     {statistics.median(report[1:]):.2f} s")
    print(
        f"all of it, of {given.eval_every} steps and their evaluation "
        f"{max(extra, 0) / (between + statistics.median(plain[1:])) + share:.2%}"
    )
    print(
        f"preflight                             {first:.2f} s, again {again:.2f} s, "
        f"{again / statistics.median(times[False]):.1f} steps"
    )


if __name__ == "__main__":
    main()
