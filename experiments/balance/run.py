"""Trains every arm of sweep.yaml with every seed, and writes table.md, result.json, balance.png.

    python experiments/balance/run.py [--budget 5steps] [--seeds 1] [--into FOLDER]

Runs are the house's own: what is finished is not trained again, what was interrupted goes on. The
table is also put into README.md, between its two marks, unless --into names another folder.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

HERE = Path(__file__).parent
#: 0.975-quantiles of Student's t by degrees of freedom: intervals over a few seeds.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
#: Steps at the end of training over which imbalance is averaged.
LAST = 50


def train(overrides: list[str]) -> Path:
    """Train one run in a process of its own: its directory."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    command = [sys.executable, "-m", "llm.train", *overrides]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return Path(ended.stdout.strip().splitlines()[-1])


def measured(folder: Path) -> dict[str, float]:
    """Excess in nats, largest over mean load of the worst layer, and experts without a token."""
    with (folder / "metrics.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    trained = [row for row in rows if "moe/max_over_mean" in row][-LAST:]
    (excess,) = [row["val/excess"] for row in rows if "val/excess" in row][-1:]
    return {
        "excess": excess,
        "max_over_mean": statistics.mean(row["moe/max_over_mean"] for row in trained),
        "dead": statistics.mean(row["moe/dead"] for row in trained),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval (0 for a single value)."""
    n = len(values)
    if n < 2:
        return values[0], 0.0
    return statistics.mean(values), STUDENT[n - 1] * statistics.stdev(values) / math.sqrt(n)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: means and 95% intervals over seeds; the difference to `none` is paired by seed."""
    lines = [
        "| balance | excess, nats | less than none | largest over mean load | dead, of 2 × 16 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm, runs in results.items():
        cells = [f"{m:.3f} ± {w:.3f}" for m, w in [interval([r["excess"] for r in runs])]]
        gains = [
            none["excess"] - run["excess"] for none, run in zip(results["none"], runs, strict=True)
        ]
        m, w = interval(gains)
        cells.append("–" if arm == "none" else f"{m:+.3f} ± {w:.3f}")
        m, w = interval([r["max_over_mean"] for r in runs])
        cells.append(f"{m:.2f} ± {w:.2f}")
        m, w = interval([r["dead"] for r in runs])
        cells.append(f"{m:.1f} ± {w:.1f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Imbalance and excess, one point a seed, the mean and its interval."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = {"max_over_mean": "largest over mean load", "excess": "excess loss, nats a token"}
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (key, label) in zip(axes, panels.items(), strict=True):
        for place, runs in enumerate(results.values()):
            values = [run[key] for run in runs]
            mean, width = interval(values)
            ax.errorbar(mean, place, xerr=width, fmt="o", color="tab:blue", capsize=3)
            ax.plot(values, [place + 0.22] * len(values), "|", color="tab:gray")
        ax.set_xlabel(label)
        ax.set_yticks(range(len(results)), list(results))
        ax.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", help="instead of sweep.yaml's, to try it out: 5steps")
    parser.add_argument("--seeds", type=int, help="only the first so many")
    parser.add_argument("--into", type=Path, default=HERE, help="folder for what is written")
    given = parser.parse_args()
    sweep: dict[str, Any] = yaml.safe_load((HERE / "sweep.yaml").read_text())
    common = list(sweep["common"])
    if given.budget:
        steps = given.budget.removesuffix("steps")
        common += [f"train.budget={given.budget}", f"train.eval_every={steps}"]
    results: dict[str, list[dict[str, float]]] = {}
    for arm, overrides in sweep["arms"].items():
        for seed in sweep["seeds"][: given.seeds]:
            folder = train([*common, *overrides, f"seed={seed}"])
            run = measured(folder)
            results.setdefault(arm, []).append(run)
            print(arm, seed, {name: round(value, 3) for name, value in run.items()}, flush=True)
    text = table(results)
    print(text)
    given.into.mkdir(parents=True, exist_ok=True)
    (given.into / "result.json").write_text(json.dumps(results, indent=1) + "\n")
    (given.into / "table.md").write_text(text + "\n")
    draw(results, given.into / "balance.png")
    if given.into == HERE:
        readme = HERE / "README.md"
        marked = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.S)
        readme.write_text(marked.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", readme.read_text()))


if __name__ == "__main__":
    main()
