"""Table and figure of the study, from its runs: table.md, result.json, balance.png.

    python -m llm.train -m experiments=balance
    python experiments/balance/table.py outputs/sweeps/balance-… [--into FOLDER]

The table is also put into README.md, between its two marks, unless --into names another folder.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from llm.report.collect import Result, collect
from llm.report.leaderboard import by_arm
from llm.report.statistics import mean_interval

HERE = Path(__file__).parent
#: Steps at the end of training over which imbalance is averaged.
LAST = 50


def measured(result: Result) -> dict[str, float]:
    """Excess in nats, largest over mean load of the worst layer, and experts without a token."""
    with (result.folder / "metrics.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    trained = [row for row in rows if "moe/max_over_mean" in row][-LAST:]
    return {
        "excess": result.facts["excess"],
        "max_over_mean": statistics.mean(row["moe/max_over_mean"] for row in trained),
        "dead": statistics.mean(row["moe/dead"] for row in trained),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval (0 for a single value)."""
    found = mean_interval(values)
    return found.mean, found.half or 0.0


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
    parser.add_argument("sweep", type=Path, help="outputs/sweeps/balance-…")
    parser.add_argument("--into", type=Path, default=HERE, help="folder for what is written")
    given = parser.parse_args()
    arms = by_arm(collect([given.sweep]).results)
    results = {arm_name(label): [measured(run) for run in runs] for label, runs in arms.items()}
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


def arm_name(label: str) -> str:
    """`balance=none noise=False` as "none, no noise"."""
    return label.replace("balance=", "").replace(" noise=False", ", no noise").replace("+", " and ")


if __name__ == "__main__":
    main()
