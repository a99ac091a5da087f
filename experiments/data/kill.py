"""Kill `llm.prepare` at random moments, start it again, and compare bytes.

    python experiments/data/kill.py --kills 10 --megabytes 60

A corpus is prepared once left alone, and once killed with SIGKILL so many times, at random moments
from its start on, and started again after each. Everything prepared must be the same bytes. Exit
code 1 where it is not.
"""

import argparse
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from experiments.crash.plug import Command, contents, differing, pull, rising
from llm.data.texts import SEPARATOR
from llm.prepare import run


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


def journal_written(outputs: Path) -> float:
    """When the journal of what is done was written last; 0 where there is none."""
    for file in (outputs / "data").glob(".*.journal"):
        with suppress(FileNotFoundError):
            return file.stat().st_mtime
    return 0.0


def prepared(outputs: Path) -> dict[str, bytes]:
    return contents(outputs / "data", "[!.]*/*")


def trial(kills: int, megabytes: int, seed: int, folder: Path, extra: list[str]) -> list[str]:
    """One preparation left alone against one that was killed; names of files that differ."""
    text, dice = folder / "text.txt", random.Random(seed)
    write_text(text, megabytes * 1_000_000)
    settings = ["data=custom", f"data.path={text}", "tokenizer=gpt2", *extra]
    alone, killed = folder / "alone", folder / "killed"
    command = Command("llm.prepare", run, folder / "log.txt")
    command.finish(command.start([*settings, f"outputs={alone}"]))
    count = 0
    while count < kills:
        process = command.start([*settings, f"outputs={killed}"])
        at_work = rising(lambda: journal_written(killed))
        if not pull(process, dice, 3.0, at_work, 2.0):
            print(f"it was over after {count} kills; more --megabytes give room for more")
            break
        count += 1
        print(f"kill {count} of {kills}", flush=True)
    command.finish(command.start([*settings, f"outputs={killed}"]))
    return differing(prepared(alone), prepared(killed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="further overrides, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(given.kills, given.megabytes, given.seed, Path(folder), given.extra)
    print(found or "byte-identical")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
