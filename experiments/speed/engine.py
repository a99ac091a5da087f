"""Tokens per second of the engine, by rows that are written at a time.

python experiments/speed/engine.py model=small moe=dense --vocab 50304 --dtype bfloat16
"""

import argparse
import statistics
import time

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.generate.engine import Engine, Request


def step_seconds(engine: Engine, rows: int, tokens: int) -> float:
    """Median of the steps in which every row gets a token, of the second of two rounds."""
    found: list[float] = []
    for _ in range(2):
        found.clear()
        for key in range(rows):
            engine.submit(Request([1 + key], tokens, temperature=0.8, top_k=50, key=key))
        while engine.busy:
            begun = time.perf_counter()
            events = engine.step()
            if len(events) == rows:
                found.append(time.perf_counter() - begun)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=60)
    flags = parser.parse_intermixed_args()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", flags.overrides), resolve=True)
    model = build_model(config, flags.vocab).eval().to(getattr(torch, flags.dtype))  # type: ignore[arg-type]
    for rows in flags.rows:
        seconds = step_seconds(Engine(model, rows), rows, flags.tokens)
        print(f"{rows:3} rows: {rows / seconds:8,.0f} tokens/s, {1e3 * seconds:.2f} ms a step")


if __name__ == "__main__":
    main()
