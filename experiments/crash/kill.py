"""Pull the plug at random moments, start the same command again, and compare bytes.

    python experiments/crash/kill.py --kills 50
    python experiments/crash/kill.py --kills 20 --moe dense switch

For each `moe` (every option, unless some are named; the kills are shared out evenly) a run is left
alone, and a second one of the same identity is killed with SIGKILL so many times, at random moments
from its start on, and started again after each. Weights, optimizer state and metrics.jsonl of both
must be the same bytes at the end. Exit code 1 where they are not.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
#: Small enough to make a step of some ten milliseconds; saving is a good part of the time.
TOY = [
    "model=tiny",
    "model.d_model=64",
    "model.n_heads=4",
    "model.n_layers=2",
    "model.d_ff=128",
    "model.max_seq_len=64",
    "model.dropout=0.1",
    "data=pydoc",
    "tokenizer=bytes",
    "tracking=none",
    "train.batch_size=4",
    "train.grad_accum_steps=2",
    "train.eval_every=20",
    "train.eval_tokens=1024",
    "train.checkpoint_every=3",
    "hardware.device=cpu",
    "hardware.precision=fp32",
]


def command(outputs: Path, moe: str, steps: int, extra: list[str]) -> list[str]:
    settings = [*TOY, f"moe={moe}", f"outputs={outputs}", f"train.budget={steps}steps", *extra]
    return [sys.executable, "-m", "llm.train", *settings]


def run_directory(outputs: Path) -> Path | None:
    """The only run under `outputs`, None as long as there is none."""
    found = list((outputs / "runs").glob("*/")) if (outputs / "runs").exists() else []
    return next((folder for folder in found if not folder.name.startswith(".")), None)


def whole(line: list[str]) -> None:
    """Run the command to its end."""
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_once(line: list[str], outputs: Path, dice: random.Random) -> bool:
    """Start the command and kill it at a random moment; False where it was done before that."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if dice.random() < 0.2:  # at any moment from the start on
        time.sleep(dice.uniform(0, 6))
    else:  # in training: wait for the log to grow, then a little
        folder, before = run_directory(outputs), -1
        while process.poll() is None:
            folder = folder or run_directory(outputs)
            log = folder / "metrics.jsonl" if folder else None
            size = log.stat().st_size if log and log.exists() else 0
            if before >= 0 and size > before:
                break
            before = size
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.6))
    done = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not done


def differences(a: Path, b: Path) -> list[str]:
    """Names of the files that must be the same bytes and are not."""
    names = ["metrics.jsonl"]
    for group in ("checkpoints", "best"):
        newest = sorted((a / group).glob("step-*"))[-1]
        names += [str(f.relative_to(a)) for f in newest.iterdir() if f.suffix == ".safetensors"]
    return [
        n for n in names if not (b / n).exists() or (a / n).read_bytes() != (b / n).read_bytes()
    ]


def trial(moe: str, kills: int, steps: int, seed: int, folder: Path, extra: list[str]) -> list[str]:
    """One run left alone against one killed `kills` times; what differs between them."""
    dice = random.Random(seed)
    alone, killed = folder / f"{moe}-alone", folder / f"{moe}-killed"
    whole(command(alone, moe, steps, extra))
    line, count = command(killed, moe, steps, extra), 0
    with tqdm(total=kills, desc=f"{moe}: kills") as bar:
        while count < kills and kill_once(line, killed, dice):
            count += 1
            bar.update()
    if count < kills:
        print(f"{moe}: the run was over after {count} kills; more --steps give room for more")
    whole(line)
    a, b = run_directory(alone), run_directory(killed)
    assert a is not None and b is not None
    return differences(a, b)


def every_moe() -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / "moe").glob("*.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moe", nargs="+", default=every_moe())
    parser.add_argument("extra", nargs="*", help="further overrides, after --")
    arguments = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for moe in arguments.moe:
            differing = trial(
                moe,
                -(-arguments.kills // len(arguments.moe)),
                arguments.steps,
                arguments.seed,
                Path(folder),
                arguments.extra,
            )
            print(f"{moe}: {differing or 'byte-identical'}")
            bad += bool(differing)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
