"""Whether two revisions train to the same bytes on this machine.

    python tests/golden/compare.py REV_A REV_B [--except METRIC ...]

Both train five short runs, one of them stopped and resumed. Ids, `metrics.jsonl` and the weights
must be equal; `--except val/accepted` lets the metrics differ whose names begin so. Where the
revisions have different result versions, figures may differ, and it is said. One line for each
difference; the exit code is 1 where there is one.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_SMALL = """model=nano model.d_model=16 model.n_layers=2 model.n_heads=2 model.max_seq_len=32
    model.d_ff=32 hardware=cpu hardware.precision=fp32 hardware.threads=1 tracking=none
    train.batch_size=4 train.eval_every=10 train.eval_tokens=600 train.checkpoint_every=10
    train.sample_every=15 train.budget=30steps"""
_TEXT = "data=custom data.path=text.txt tokenizer=bytes"
_TOWN = "data=tinytown data.documents=300 data.val_documents=30 tokenizer=words"
RUNS = {
    "dense": f"{_TEXT} moe=dense optimizer=adamw model.dropout=0.1 train.grad_accum_steps=2",
    "topk": f"{_TOWN} moe=topk",
    "capacity": f"{_TEXT} moe=switch moe.overflow=next model.moe_every=2 optimizer/schedule=wsd",
    "mask-bf16": f"""{_TEXT} data.document_mask=true model/position=learned moe=loss_free
        optimizer=adamw hardware.precision=bf16""",
    "resumed": f"{_TOWN} moe=noisy_topk model.dropout=0.1 train.budget=300steps",
}
#: Lines of metrics.jsonl after which the last one is stopped.
_STOP_AFTER = 25


def train(code: Path, place: Path, name: str) -> Path:
    """Train one of RUNS with the code of a revision: the run's directory."""
    words = [*_SMALL.split(), *RUNS[name].split(), f"outputs={name}"]
    command = [sys.executable, "-m", "llm.train", *words]
    cache = {"MY_SIMPLE_LLM_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **cache, "PYTHONPATH": str(code)}

    def start() -> subprocess.Popen[str]:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=place, env=env, **pipes)

    process = start()
    if name == "resumed":
        while process.poll() is None and lines_in(place / name) < _STOP_AFTER:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        if process.returncode == 0:
            sys.exit(f"{name}: ended before it could be stopped; give it more steps")
        process = start()
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{code.name}: {name}: {err.strip().splitlines()[-1:] or process.returncode}")
    return place / out.strip().splitlines()[-1]


def lines_in(outputs: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in outputs.glob("runs/*/metrics.jsonl"))


def unpacked(revision: str, folder: Path) -> Path:
    """The files of a revision."""
    command = ["git", "-C", str(HERE.parent.parent), "archive", "--format=tar", revision]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        sys.exit(f"{revision}: {made.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def differences(a: Path, b: Path, excepted: tuple[str, ...]) -> Iterator[str]:
    """What differs between two run directories, the id aside."""
    logs = [(run / "metrics.jsonl").read_bytes() for run in (a, b)]
    if logs[0] != logs[1]:
        rows = [[json.loads(line) for line in log.splitlines()] for log in logs]
        if len(rows[0]) != len(rows[1]):
            yield f"metrics.jsonl has {len(rows[0])} and {len(rows[1])} rows"
        seen: set[str] = set()
        for one, other in zip(*rows, strict=False):
            for key in [*one, *(key for key in other if key not in one)]:
                values = one.get(key, "missing"), other.get(key, "missing")
                if values[0] != values[1] and key not in seen and not key.startswith(excepted):
                    seen.add(key)
                    yield f"{key} at step {one['step']}: {values[0]!r} and {values[1]!r}"
        if not seen and not excepted:
            yield "metrics.jsonl: equal values, written otherwise"
    names = [{f.relative_to(run) for f in run.glob("*/*/model.safetensors")} for run in (a, b)]
    yield from (f"{name}: only one has it" for name in sorted(names[0] ^ names[1]))
    for name in sorted(names[0] & names[1]):
        if (a / name).read_bytes() != (b / name).read_bytes():
            yield f"{name}: other bytes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("--except", dest="excepted", nargs="+", default=[], metavar="METRIC")
    flags = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / side for side in "ab"]
        codes = [unpacked(r, p / "code") for r, p in zip(flags.revisions, places, strict=True)]
        for place in places:
            (place / "text.txt").write_bytes((HERE / "text.txt").read_bytes())
        for name in RUNS:
            runs = [train(c, p, name) for c, p in zip(codes, places, strict=True)]
            facts = [json.loads((run / "run.json").read_bytes()) for run in runs]
            versions = [of_run.get("result_version", 1) for of_run in facts]
            ids = [f"other ids: {runs[0].name} and {runs[1].name}"] * (runs[0].name != runs[1].name)
            found = list(differences(*runs, tuple(flags.excepted)))
            announced = versions[0] != versions[1]
            if announced:
                print(f"{name}: figures may differ: result versions {versions}")
            failed |= bool(ids or (found and not announced))
            for line in [*ids, *found] or ["equal"]:
                print(f"{name}: {line}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
