"""Kill `llm.prepare` at random moments, start it again, and compare bytes.

    python experiments/data/kill.py --kills 10 --megabytes 60

A corpus is prepared once left alone, and once killed with SIGKILL so many times, at random moments
from its start on, and started again after each. Everything prepared must be the same bytes. Exit
code 1 where it is not.
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

from llm.data.texts import SEPARATOR


def write_text(file: Path, n_bytes: int, seed: int = 0) -> None:
    """Write about so many bytes of ASCII, in documents of about a thousand characters."""
    dice = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 1) for rank in range(len(letters))]
    words = ["".join(dice.choices(letters, weights, k=dice.randint(1, 10))) for _ in range(20_000)]
    chances = [1 / (rank + 1) for rank in range(len(words))]
    written = 0
    with file.open("w") as out:
        while written < n_bytes:
            chosen = dice.choices(words, chances, k=20_000)  # once for a hundred documents
            sentences = [" ".join(chosen[i : i + 10]) + "." for i in range(0, len(chosen), 10)]
            documents = [" ".join(sentences[i : i + 20]) for i in range(0, len(sentences), 20)]
            block = SEPARATOR.join(documents) + SEPARATOR
            out.write(block)
            written += len(block)


def command(outputs: Path, text: Path, extra: list[str]) -> list[str]:
    settings = ["data=custom", f"data.path={text}", "tokenizer=gpt2", f"outputs={outputs}"]
    return [sys.executable, "-m", "llm.prepare", *settings, *extra]


def journal(outputs: Path) -> Path | None:
    return next(iter((outputs / "data").glob(".*.journal")), None)


def kill_once(line: list[str], outputs: Path, dice: random.Random) -> bool:
    """Start the command and kill it at a random moment; False where it was done before that."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if dice.random() < 0.2:  # at any moment from the start on
        time.sleep(dice.uniform(0, 6))
    else:  # at work: wait for the journal to be written anew, then a little
        before = -1.0
        while process.poll() is None:
            file = journal(outputs)
            try:
                written = file.stat().st_mtime if file else 0.0
            except FileNotFoundError:
                continue
            if before >= 0 and written > before:
                break
            before = written
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 2))
    done = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not done


def contents(outputs: Path) -> dict[str, bytes]:
    """Name and bytes of every file of what was prepared."""
    files = [file for file in (outputs / "data").glob("[!.]*/*") if file.is_file()]
    return {str(file.relative_to(outputs)): file.read_bytes() for file in sorted(files)}


def trial(kills: int, megabytes: int, seed: int, folder: Path, extra: list[str]) -> list[str]:
    """One preparation left alone against one that was killed; names of files that differ."""
    text, dice = folder / "text.txt", random.Random(seed)
    write_text(text, megabytes * 1_000_000)
    alone, killed = folder / "alone", folder / "killed"
    subprocess.run(command(alone, text, extra), check=True, capture_output=True)
    line, count = command(killed, text, extra), 0
    with tqdm(total=kills, desc="kills") as bar:
        while count < kills and kill_once(line, killed, dice):
            count += 1
            bar.update()
    if count < kills:
        print(f"it was over after {count} kills; more --megabytes give room for more")
    subprocess.run(line, check=True, capture_output=True)
    a, b = contents(alone), contents(killed)
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="further overrides, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differing = trial(given.kills, given.megabytes, given.seed, Path(folder), given.extra)
    print(differing or "byte-identical")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
