"""How fast text becomes batches, as ratios measured in one run.

    python experiments/speed/data.py [--quick] [--folder DIR] [--json FILE]

On two cores:
- tokenization: `python -m llm.prepare` on generated text with GPT-2's vocabulary, against
  `tiktoken.encode_ordinary_batch` on the same documents held in memory. They take turns. What the
  command takes for almost no text (imports, mostly) is measured in the same way and taken off.
- memory: the largest process of `llm.prepare` on 10 MB and on 1 GB of text
- the loader: tokens a second of the training order, against those that the tiny model learns from
- opening what was prepared

`--quick` makes all of it smaller (20 MB instead of 1 GB) and takes less than a minute; its memory
and tokenization figures say little. The folder needs about 2 GB, and is emptied behind each part.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CORES = 2
SEPARATOR = "<|endoftext|>"


class Sizes(NamedTuple):
    """Megabytes of text, and how often is measured."""

    timed: int
    small: int
    large: int
    rounds: int


FULL, QUICK = Sizes(100, 10, 1000, 3), Sizes(4, 2, 20, 1)


def documents(megabytes: float, seed: int = 0) -> Iterator[str]:
    """English of about 1.5 kB a document, no two alike: lines of Python's own manual, shuffled."""
    import random
    from pydoc_data.topics import topics

    lines = [line for name in sorted(topics) for line in topics[name].split("\n") if line.strip()]
    draw = random.Random(seed)
    left, number = megabytes * 1e6, 0
    while left > 0:
        text = f"Text {seed}-{number}.\n" + "\n".join(draw.choices(lines, k=30))
        left, number = left - len(text.encode()) - len(SEPARATOR), number + 1
        yield text


def write(path: Path, megabytes: float) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for text in documents(megabytes):
            file.write(text + SEPARATOR)
    return path


def prepare(text: Path, outputs: Path) -> tuple[float, float]:
    """Seconds of `llm.prepare` and MB of its largest process."""
    line = [sys.executable, "-m", "llm.prepare", "data=custom", f"data.path={text}"]
    line += ["tokenizer=gpt2", f"outputs={outputs}"]
    begun = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1)]
        process = os.posix_spawn(sys.executable, line, os.environ, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(line)} ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB elsewhere
    return time.perf_counter() - begun, usage.ru_maxrss / unit


def prepared_folder(outputs: Path) -> Path:
    """The one corpus that was prepared there."""
    (manifest,) = (outputs / "data").glob("[!.]*/manifest.json")
    return manifest.parent


def tokenization(folder: Path, sizes: Sizes) -> dict[str, float]:
    from llm.tokenizer.gpt2 import _encoding

    encoding, nothing = _encoding(), write(folder / "nothing.txt", 0.01)
    text = write(folder / "timed.txt", sizes.timed)
    texts = list(documents(sizes.timed))
    ours, theirs, starts = [], [], []
    for turn in range(sizes.rounds):
        begun = time.perf_counter()
        encoding.encode_ordinary_batch(texts, num_threads=CORES)
        theirs.append(time.perf_counter() - begun)
        starts.append(prepare(nothing, folder / f"start{turn}")[0])
        ours.append(prepare(text, folder / f"timed{turn}")[0])
    net = [mine - start for mine, start in zip(ours, starts, strict=True)]
    ratios = [other / mine for other, mine in zip(theirs, net, strict=True)]
    return {
        "megabytes": sizes.timed,
        "tiktoken_seconds": statistics.median(theirs),
        "prepare_seconds": statistics.median(ours),
        "start_seconds": statistics.median(starts),
        "of_tiktoken": statistics.median(ratios),
        "of_tiktoken_with_start": statistics.median(theirs) / statistics.median(ours),
    }


def memory(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Leaves the larger corpus prepared, without its text."""
    found = {}
    for name, megabytes in (("small", sizes.small), ("large", sizes.large)):
        text = write(folder / f"{name}.txt", megabytes)
        seconds, peak = prepare(text, folder / name)
        text.unlink()
        found |= {f"{name}_megabytes": megabytes, f"{name}_peak_MB": peak}
        found[f"{name}_seconds"] = seconds
    return found | {"growth": found["large_peak_MB"] / found["small_peak_MB"]}


def loader(corpus: Path, rounds: int) -> dict[str, float]:
    """Batches as `llm.train` asks for them, and the steps that it takes with them."""
    from bench import Variant

    from llm.data.batches import TrainOrder
    from llm.data.prepare import open_prepared

    # A small vocabulary: the model's quickest case.
    rows, model = 8, Variant(["moe=dense", "hardware=cpu"], "tiny", 8, 512)
    seq_len = model.tokens // rows
    order = TrainOrder(open_prepared(corpus).tokens("train"), seq_len, 0)
    load, learn = [], []
    for step in range(20 * rounds + 2):
        begun = time.perf_counter()
        order.rows(step * rows, rows)
        loaded = time.perf_counter() - begun
        learnt = model.step()
        if step >= 2:  # the first two warm up
            load.append(loaded)
            learn.append(learnt)
    ratio = statistics.median(b / a for a, b in zip(load, learn, strict=True))
    return {
        "loader_tokens_per_second": model.tokens / statistics.median(load),
        "model_tokens_per_second": model.tokens / statistics.median(learn),
        "ratio": ratio,
    }


def opening(corpus: Path) -> dict[str, float]:
    from llm.data.prepare import open_prepared

    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        prepared = open_prepared(corpus)
        prepared.tokens("train")[-1], prepared.tokens("val")[-1], prepared.document_starts("val")
        seconds.append(time.perf_counter() - begun)
    return {"first_seconds": seconds[0], "seconds": statistics.median(seconds)}


def table(results: dict[str, dict[str, float]]) -> str:
    """What was asked, what was found."""
    t, m, b, o = (results[key] for key in ("tokenization", "memory", "loader", "opening"))
    rows = [
        (
            f"tokenization of {t['megabytes']:,} MB, of tiktoken's",
            f"{t['of_tiktoken']:.0%} ({t['of_tiktoken_with_start']:.0%} with the start)",
            "≥ 90%",
        ),
        (
            f"peak memory, {m['large_megabytes']:,} MB against {m['small_megabytes']:,}",
            f"{m['large_peak_MB']:,.0f} against {m['small_peak_MB']:,.0f} MB, {m['growth']:.2f}×",
            "no growth",
        ),
        (
            "loader against the tiny model",
            f"{b['loader_tokens_per_second']:,.0f} against {b['model_tokens_per_second']:,.0f} "
            f"tokens/s, {b['ratio']:,.0f}×",
            "≥ 50×",
        ),
        (
            "opening a prepared corpus",
            f"{o['first_seconds'] * 1e3:.1f} ms first, {o['seconds'] * 1e3:.1f} ms again",
            "< 200 ms",
        ),
    ]
    width = max(len(row[1]) for row in rows)
    return "\n".join(f"{name:44} {found:{width}}  asked: {asked}" for name, found, asked in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller, in less than a minute")
    parser.add_argument("--folder", type=Path, help="where to work; the system's by default")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench-data.json"))
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    if hasattr(os, "sched_setaffinity"):  # and so every process that is started here
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    results: dict[str, dict[str, float]] = {}
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        # First: what a process starts out with counts as its child's peak, so it must be little.
        print(f"memory with {sizes.large} MB …", file=sys.stderr)
        results["memory"] = memory(folder, sizes)
        corpus = prepared_folder(folder / "large")
        results["opening"] = opening(corpus)
        print("loader …", file=sys.stderr)
        results["loader"] = loader(corpus, sizes.rounds)
        for part in folder.iterdir():
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        print(f"tokenization of {sizes.timed} MB …", file=sys.stderr)
        results["tokenization"] = tokenization(folder, sizes)
    print(table(results))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"quick": given.quick, "cores": CORES, **results}
    given.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
