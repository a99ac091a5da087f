"""Pull the plug at random moments, start the same command again, and compare bytes.

    python experiments/crash/kill.py --kills 50
    python experiments/crash/kill.py --kills 20 --moe dense switch

The kills are shared out evenly over `moe` (every option, unless some are named). For each, a run is
left alone, and a second one of the same identity is killed with SIGKILL so many times and started
again after each: at moments spread evenly over the run from its first line to its last, saves
included, and one time in five while it starts. At the end the metric logs, every checkpoint that
was kept and the best weights must be the same bytes in both, and the first checkpoint must not be
the same as the last. Exit code 1 where they are not.
"""

import argparse
import io
import random
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from experiments.crash.plug import Command, contents, differing, pull, rising
from llm.config.choices import Choices
from llm.config.entry import main as entry
from llm.config.outcome import run_facts
from llm.train import train

CHECKPOINT_EVERY = 3
#: Small enough to make a step of some ten milliseconds; saving is a good part of the time.
TOY = [
    "model=tiny",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
    "model.d_ff=64",
    "model.max_seq_len=32",
    "model.dropout=0.1",
    "data=custom",
    "tokenizer=bytes",
    "tracking=none",
    "train.batch_size=2",
    "train.grad_accum_steps=2",
    "train.eval_every=40",
    "train.eval_tokens=512",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    f"train.keep_every={10 * CHECKPOINT_EVERY}",
    "hardware=cpu",
    "hardware.precision=fp32",
    "hardware.threads=1",
]


@dataclass
class Trial:
    """What came of one option."""

    moe: str
    steps: list[int]  # that the log had at each kill
    saving: int  # kills in the middle of a save
    problems: list[str]
    seconds: float

    @property
    def verdict(self) -> str:
        return ", ".join(self.problems) or "byte-identical"


def run_directory(outputs: Path) -> Path:
    """The only run under `outputs`, a folder that is not there as long as there is none."""
    found = (f for f in (outputs / "runs").glob("*/") if not f.name.startswith("."))
    return next(found, outputs / "none")


def log_size(outputs: Path) -> int:
    """Bytes of the metric log so far."""
    log = run_directory(outputs) / "metrics.jsonl"
    return log.stat().st_size if log.exists() else 0


def kept(outputs: Path) -> dict[str, bytes]:
    """What has to be the same."""
    tensors = ("checkpoints/step-*/*.safetensors", "best/step-*/*.safetensors")
    return contents(run_directory(outputs), "metrics.jsonl", *tensors)


def trial(
    command: Command, moe: str, kills: int, settings: list[str], seed: int, folder: Path
) -> Trial:
    """One run left alone against one that is killed so many times."""
    begun, dice = time.monotonic(), random.Random(f"{seed} {moe}")
    alone, killed = folder / f"{moe}-alone", folder / f"{moe}-killed"
    overrides = [*TOY, *settings, f"moe={moe}"]
    process = command.start([*overrides, f"outputs={alone}"])
    working = rising(lambda: log_size(alone))
    while process.is_alive() and not working():
        time.sleep(0.01)
    start = time.monotonic() - begun
    command.finish(process)
    reference, facts = kept(alone), run_facts(run_directory(alone))
    spread = CHECKPOINT_EVERY * facts["seconds"] / facts["steps"]
    found = Trial(moe, [], 0, [], 0.0)
    for moment in sorted(dice.uniform(0, log_size(alone)) for _ in range(kills)):
        life = time.time()
        process = command.start([*overrides, f"outputs={killed}"])
        working = rising(lambda: log_size(killed), moment)
        if not pull(process, dice, start, working, spread):
            found.problems.append(f"was over before kill {len(found.steps) + 1}")
            break
        run = run_directory(killed)
        halves = [half.stat().st_mtime for half in run.glob("*/.step-*.tmp")]
        found.saving += any(made >= life for made in halves)
        log = run / "metrics.jsonl"
        found.steps.append(log.read_bytes().count(b"\n") if log.exists() else 0)
    command.finish(command.start([*overrides, f"outputs={killed}"]))
    found.problems += [f"{name} differs" for name in differing(reference, kept(killed))]
    saved = sorted(name for name in reference if name.startswith("checkpoints/"))
    if reference[saved[0]] == reference[saved[-2]]:  # the models' of the first and of the last
        found.problems.append("the first checkpoint is the last")
    found.seconds = time.monotonic() - begun
    return found


def import_all(overrides: list[str]) -> None:
    """Train for a step in this process: what that imports, all others inherit."""
    sys.argv = ["llm.train", *TOY, *overrides, "train.budget=1steps"]
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            entry("llm.train", train)
    except SystemExit as end:
        if end.code:
            raise SystemExit(said.getvalue()) from None


def write_text(file: Path) -> None:
    words = "the cat sat on the mat and saw a dog who ran to the sea with an old red hat".split()
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(3000))
    file.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moe", nargs="+", default=Choices().groups["moe"])
    parser.add_argument("extra", nargs="*", help="further overrides, after --")
    given = parser.parse_args()
    begun, trials = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.txt")
        settings = [f"data.path={folder / 'text.txt'}", *given.extra]
        import_all([*settings, f"outputs={folder / 'first'}"])
        settings.append(f"train.budget={given.steps}steps")
        command = Command("llm.train", train, folder / "log.txt")
        for i, moe in enumerate(given.moe):
            share = given.kills // len(given.moe) + (i < given.kills % len(given.moe))
            trials.append(trial(command, moe, share, settings, given.seed, folder))
            done, last = sum(len(t.steps) for t in trials), trials[-1]
            print(
                f"{done:3} of {given.kills} kills, {time.monotonic() - begun:4.0f} s: {moe}, "
                f"{len(last.steps)} kills in {last.seconds:.0f} s, {last.verdict}",
                flush=True,
            )
    print(f"\n{'moe':14} {'kills':>5} {'in a save':>9}  {'bytes':14}  steps done when killed")
    for found in trials:
        at = " ".join(map(str, found.steps))
        print(f"{found.moe:14} {len(found.steps):5} {found.saving:9}  {found.verdict:14}  {at}")
    whole = sum(len(t.steps) for t in trials if not t.problems)
    print(f"{whole} kills over {len(trials)} options, and after each the same bytes")
    sys.exit(1 if any(found.problems for found in trials) else 0)


if __name__ == "__main__":
    main()
