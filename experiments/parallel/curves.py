"""One process with four micro-steps against four processes with one: how far apart are they?

    python experiments/parallel/curves.py [--processes 4] [--steps 40]

A dense model and one with experts, by DDP and by FSDP over gloo, in float32. Printed is the largest
difference between the two curves: of the training loss, step by step, and of the validation loss.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llm.tracking.log import MetricLog

MODELS = {"dense": ["moe=dense"], "experts": ["moe=topk"]}
SCHEMES = ("ddp", "fsdp")
SETTINGS = [
    "model=tiny",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
    "model.d_ff=64",
    "model.max_seq_len=32",
    "model.dropout=0.1",
    "data=custom",
    "data.path=text.txt",
    "tokenizer=bytes",
    "tracking=none",
    "train.eval_every=10",
    "train.eval_tokens=1024",
    "hardware=cpu",
    "hardware.precision=fp32",
    "hardware.threads=1",
]


def split(processes: int) -> list[str]:
    """What one process is told: as many micro-steps as there would be processes."""
    return ["train.batch_size=2", f"train.grad_accum_steps={processes}"]


def at_once(processes: int, scheme: str) -> list[str]:
    """What the processes are told, for the same rows of each step."""
    return [f"train.batch_size={2 * processes}", f"hardware.parallel={scheme}"]


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of each loss between two runs, over all steps."""
    pairs = list(zip(*(MetricLog.read(run / "metrics.jsonl") for run in (one, other)), strict=True))
    return {
        name: max(abs(a[name] - b[name]) for a, b in pairs if name in a)
        for name in ("train/loss", "val/loss")
    }


def run(launcher: list[str], overrides: list[str], folder: Path) -> Path:
    """The directory of a run that was trained in `folder`."""
    repository = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "llm.train", *SETTINGS, *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return folder / ended.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(given.processes)]
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = "the cat sat on the mat and saw a dog who ran to the sea with an old hat".split()
        text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(3000))
        (folder / "text.txt").write_text(text + "\n")
        for model, chosen in MODELS.items():
            settings = [*chosen, f"train.budget={given.steps}steps"]
            alone = run([], [*settings, *split(given.processes), "outputs=alone"], folder)
            for scheme in SCHEMES:
                together = [*settings, *at_once(given.processes, scheme), f"outputs={scheme}"]
                found = differences(alone, run(torchrun, together, folder))
                results[f"{model}, {scheme}"] = found
                told = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
                print(f"{model:8} {scheme:5} {given.steps} steps, largest difference: {told}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
