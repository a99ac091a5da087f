"""What one huge row costs: seconds and memory of `llm.prepare`, by the kind of file and its size.

    python -m experiments.data.row --megabytes 25 50 100 200 --tokenizers bytes words bpe

Each line is a process of its own, its figures those above the same command on a few bytes of text;
"times" is the memory in sizes of the row. The row is English-like, with an emoji (so that a Python
string of it takes four bytes a character); `--letters` takes all white space from it.
"""

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KINDS = ["txt", "jsonl", "json", "csv", "parquet"]


def text_of(n_bytes: int, letters: bool) -> str:
    """So many bytes of words, as frequent as English ones are."""
    dice = random.Random(0)
    words = ["".join(dice.choices("etaoinshrdlu", k=dice.randint(2, 9))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    block = ("" if letters else " ").join(
        dice.choices(words, weights, k=200_000)
    ) + '\U0001f600\\" '
    if letters:
        block = block.rstrip()
    return (block * (n_bytes // len(block) + 1))[:n_bytes]


def write(file: Path, n_bytes: int, letters: bool) -> None:
    """A file of this one row, by a process of its own: what this one has held counts for others."""
    pid = os.fork()
    if pid == 0:
        _write(file, text_of(n_bytes, letters))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def _write(file: Path, text: str) -> None:
    kind = file.suffix[1:]
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": [1], "text": [text]}), file, compression="none")
    elif kind == "csv":
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([["id", "text"], [1, text]])
    elif kind == "txt":
        file.write_text(text)
    else:
        row = json.dumps({"id": 1, "text": text}, ensure_ascii=False)
        file.write_text(f"[{row}]" if kind == "json" else row)


def cost(file: Path, tokenizer: str, outputs: Path) -> np.ndarray:
    """Seconds, CPU seconds and peak MB of preparing a file."""
    command = [sys.executable, "-m", "llm.prepare", "data=custom", f"data.path={file}"]
    began = time.perf_counter()
    pid = os.posix_spawn(
        command[0],
        [*command, f"tokenizer={tokenizer}", f"outputs={outputs}"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, command
    seconds = time.perf_counter() - began
    return np.array([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--tokenizers", nargs="+", default=["bytes"])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--letters", action="store_true")
    given = parser.parse_args()
    print("tokenizer  kind        MB  seconds    CPU  MB above  times")
    for tokenizer in given.tokenizers:
        for kind in given.kinds:
            with tempfile.TemporaryDirectory() as folder:
                small = Path(folder) / f"small.{kind}"
                write(small, 100, given.letters)
                empty = cost(small, tokenizer, Path(folder) / "outputs")
                for size in given.megabytes:
                    file = Path(folder) / f"row.{kind}"
                    write(file, size * 1_000_000, given.letters)
                    seconds, cpu, peak = cost(file, tokenizer, Path(folder) / "outputs") - empty
                    figures = f"{seconds:8.1f} {cpu:6.1f} {peak:9.0f} {peak / size:6.2f}"
                    print(f"{tokenizer:10} {kind:8} {size:5} {figures}", flush=True)


if __name__ == "__main__":
    main()
