"""From nothing to a validation loss of 1.88 on tinyshakespeare's characters, against nanoGPT.

    git clone https://github.com/karpathy/nanoGPT
    python experiments/speed/race.py --nanogpt nanoGPT --text tinyshakespeare.txt [--rounds 3]

nanoGPT runs the command that its README gives for a CPU (2,000 iterations, which end at about
1.88 on a random sample of the validation text); we run OURS. The two take turns. A clock runs from
the start of the process to the end of the first evaluation that is low enough, or to the end of the
process. Both validate on the last tenth of the text: nanoGPT on 20 random batches, we on all of it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 1.88
THEIRS = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
OURS = (
    "-m llm.train data=custom data.val_fraction=0.1 tokenizer=chars tracking=none outputs=outputs "
    "model=nano moe=dense model.d_ff=344 model.max_seq_len=128 train.batch_size=8 "
    "train.budget=300steps train.eval_every=300 train.eval_tokens=null train.checkpoint_every=300 "
    "optimizer.lr=0.008 optimizer/schedule=linear"
).split()


def ours(text: Path) -> tuple[float, float]:
    """Seconds until our evaluation is low enough, and the loss it found."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, *OURS, f"data.path={text}"]
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        begun = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=place, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            while child.poll() is None:
                for log in Path(place).glob("outputs/runs/*/metrics.jsonl"):
                    rows = [json.loads(line) for line in log.read_text().splitlines(keepends=True)]
                    found = [row["val/loss"] for row in rows if "val/loss" in row]
                    if found and min(found) <= TARGET:
                        return time.perf_counter() - begun, min(found)
                time.sleep(0.05)
        finally:
            child.kill()
        output = child.stdout.read().decode() if child.stdout else ""
        raise SystemExit(f"our run ended without reaching {TARGET}:\n{output}")


def theirs(folder: Path, text: Path) -> tuple[float, float]:
    """The same of nanoGPT; where it never gets there, its whole time and its lowest loss."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "nanoGPT"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git", "out*", "*.bin"))
        shutil.copyfile(text, copy / "data/shakespeare_char/input.txt")
        prepare = [sys.executable, "data/shakespeare_char/prepare.py"]
        subprocess.run(prepare, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        begun, low = time.perf_counter(), float("inf")
        child = subprocess.Popen(
            [sys.executable, "-u", *THEIRS], cwd=copy, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout
        try:
            for line in child.stdout:
                if line.startswith("step"):
                    low = min(low, float(line.rsplit(" ", 1)[1]))
                    print(f"    nanoGPT {line.strip()}", file=sys.stderr)
                    if low <= TARGET:
                        break
            else:
                child.wait()
        finally:
            child.kill()
        return time.perf_counter() - begun, low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of it")
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    rounds = []
    for turn in range(given.rounds):
        we, our_loss = ours(given.text.resolve())
        they, their_loss = theirs(given.nanogpt, given.text.resolve())
        rounds.append({"ours": we, "nanogpt": they, "val": our_loss, "nanogpt_val": their_loss})
        print(
            f"round {turn + 1}: ours {we:.1f} s to {our_loss:.4f}, nanoGPT {they:.1f} s to "
            f"{their_loss:.4f}: {we / they:.2f} of its time"
        )
    ratio = statistics.median(r["ours"] / r["nanogpt"] for r in rounds)
    print(f"median of the paired ratios: {ratio:.3f} of nanoGPT's time")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"rounds": rounds, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
