"""Peak memory of a training step against the length of the text: with a window it is a line.

    python experiments/attention/memory.py
    python experiments/attention/memory.py --lengths 2048 8192 32768 --windows 256 none

Each length and window is measured in a process of its own, as the largest resident size of a
forward and backward pass over one row, less that of the same process just before it. The model is
small (2 layers, 128 wide, 4 heads, 256 ids) so that what attention keeps is most of it. Without a
window, PyTorch's fused attention is linear in memory, too, and only in memory; a mask (ALiBi, here)
makes it a square, with no window.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

MIB = 2**20


def peak() -> float:
    """Largest resident size of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / MIB


def measure(length: int, window: int | None, position: str, n_sinks: int) -> None:
    """One training step in this process; prints a JSON object."""
    import torch

    from llm.layers.feed_forward import FeedForward
    from llm.model.position import Alibi, Rope
    from llm.model.transformer import Transformer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Transformer(
        256,
        FeedForward,
        position={"rope": Rope, "alibi": Alibi}[position],
        d_model=128,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=256,
        max_seq_len=length,
        norm="rmsnorm",
        norm_eps=1e-5,
        qk_norm="none",
        activation="swiglu",
        bias=False,
        tie_embeddings=True,
        dropout=0.0,
        init_std=0.02,
        window=window,
        n_sinks=n_sinks,
    )

    def step(ids: torch.Tensor) -> None:
        model(ids, ids).loss_sum.backward()
        model.zero_grad()

    step(torch.randint(256, (1, 128)))  # what is allocated once
    before, begun = peak(), time.monotonic()
    step(torch.randint(256, (1, length)))
    print(json.dumps({"mib": peak() - before, "seconds": time.monotonic() - begun}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--windows", nargs="+", default=["256", "none"])
    parser.add_argument("--position", choices=["rope", "alibi"], default="rope")
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a child measures
    flags = parser.parse_args()
    windows = [None if text == "none" else int(text) for text in flags.windows]
    if flags.one:
        measure(int(flags.one), windows[0], flags.position, flags.sinks)
        return
    print(f"{'window':>8} {'tokens':>8} {'MiB':>9} {'KiB/token':>10} {'seconds':>8}")
    for window in windows:
        for length in flags.lengths:
            if window is None and flags.position == "alibi" and length > 8192:
                print(f"{'none':>8} {length:8}   not run: a mask of {length}² for each head")
                continue
            child = [
                sys.executable,
                __file__,
                "--one",
                str(length),
                "--windows",
                str(window).lower(),
            ]
            child += ["--position", flags.position, "--sinks", str(flags.sinks)]
            ended = subprocess.run(child, capture_output=True, text=True)
            if ended.returncode:
                sys.exit(ended.stderr)
            found = json.loads(ended.stdout)
            per_token = found["mib"] * 1024 / length
            print(
                f"{window or 'none':>8} {length:8} {found['mib']:9.0f} {per_token:10.1f} "
                f"{found['seconds']:8.1f}"
            )


if __name__ == "__main__":
    main()
