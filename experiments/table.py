"""Table and figure of a study, from the runs of its sweep: table.md, result.json, arms.png.

    python -m llm.train -m experiments=NAME
    python experiments/table.py outputs/sweeps/NAME-… --against WORD [--into experiments/NAME]

Each arm is compared, in pairs of equal seeds, with the arm that has WORD (`balance=none`, say) and
agrees with it in most other words. In a README.md that has the marks `<!-- table -->` and
`<!-- end -->` the table is put between them.
"""

import argparse
import json
import math
import re
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from llm.report.collect import Result, collect
from llm.report.leaderboard import by_arm
from llm.report.statistics import mean_interval

#: Steps at the end of training over which balance is averaged.
LAST = 50
#: What is measured, and what it is called in tables and figures.
NAMES = {
    "excess": "excess loss, nats a token",
    "max_over_mean": "largest over mean load",
    "dead": "idle experts",
}

Arms = dict[str, dict[int, dict[str, float]]]  # label to seed to figures


def measured(result: Result) -> dict[str, float]:
    """Final excess; largest over mean load of the worst layer, and experts without a token."""
    with (result.folder / "metrics.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    found = {"excess": result.facts["excess"]}
    for name in ("max_over_mean", "dead"):
        last = [row[f"moe/{name}"] for row in rows if f"moe/{name}" in row][-LAST:]
        found[name] = statistics.mean(last) if last else math.nan
    return found


def groups(arms: Arms, word: str) -> dict[str, list[str]]:
    """The label of each arm that has `word`, to the labels of those compared with it."""
    references = [label for label in arms if word in label.split()]
    if not references:
        raise SystemExit(f"no arm has {word!r}; there are: {', '.join(arms)}")

    def likeness(one: str, other: str) -> int:
        return len(set(one.split()) & set(other.split()))

    found: dict[str, list[str]] = {label: [] for label in references}
    for label in arms:
        if label not in references:
            found[max(references, key=lambda reference: likeness(reference, label))].append(label)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval (0 for a single value)."""
    found = mean_interval(values)
    return found.mean, found.half or 0.0


def table(arms: Arms, compared: dict[str, list[str]]) -> str:
    """Markdown: means and 95% intervals over seeds, differences in pairs of equal seeds."""
    lines = [
        f"| arm | {NAMES['excess']} | less than the first of its block "
        f"| {NAMES['max_over_mean']} | {NAMES['dead']} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for reference, others in compared.items():
        for label in [reference, *others]:
            runs = arms[label]
            mean, half = interval([run["excess"] for run in runs.values()])
            cells = [f"`{label}`", f"{mean:.3f} ± {half:.3f}"]
            shared = runs.keys() & arms[reference].keys()
            mean, half = interval(
                [arms[reference][seed]["excess"] - runs[seed]["excess"] for seed in sorted(shared)]
            )
            cells.append("–" if label == reference else f"{mean:+.3f} ± {half:.3f}")
            for name in ("max_over_mean", "dead"):
                mean, half = interval([run[name] for run in runs.values()])
                cells.append(f"{mean:.2f} ± {half:.2f}" if math.isfinite(mean) else "–")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(arms: Arms, compared: dict[str, list[str]], file: Path) -> None:
    """A row of panels a block: a line an arm, a tick a seed, the mean and its interval."""
    blocks = [[reference, *others] for reference, others in compared.items()]
    panels = ("excess", "max_over_mean")
    figure = Figure(figsize=(10, 0.9 + 0.34 * sum(map(len, blocks))), layout="constrained")
    axes = figure.subplots(
        len(blocks),
        len(panels),
        squeeze=False,
        sharey="row",
        sharex="col",
        gridspec_kw={"height_ratios": [len(block) for block in blocks]},
    )
    for row, block in zip(axes, blocks, strict=True):
        for ax, name in zip(row, panels, strict=True):
            for place, label in enumerate(block):
                values = [run[name] for run in arms[label].values()]
                mean, half = interval(values)
                colour = "tab:gray" if place == 0 else "tab:blue"
                ax.errorbar(mean, place, xerr=half, fmt="o", color=colour, capsize=3)
                ax.plot(values, [place + 0.25] * len(values), "|", color="black")
            ax.set_yticks(range(len(block)), block)
            ax.grid(axis="x", alpha=0.3)
        row[0].invert_yaxis()
    for ax, name in zip(axes[-1], panels, strict=True):
        ax.set_xlabel(NAMES[name])
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sweep", type=Path, help="outputs/sweeps/NAME-…")
    parser.add_argument("--against", required=True, help="a word of the arms to compare with")
    parser.add_argument("--into", type=Path, required=True, help="folder for what is written")
    given = parser.parse_args()
    arms = {
        label: {run.config["seed"]: measured(run) for run in runs}
        for label, runs in by_arm(collect([given.sweep]).results).items()
    }
    compared = groups(arms, given.against)
    text = table(arms, compared)
    print(text)
    given.into.mkdir(parents=True, exist_ok=True)
    (given.into / "result.json").write_text(json.dumps(arms, indent=1) + "\n")
    (given.into / "table.md").write_text(text + "\n")
    draw(arms, compared, given.into / "arms.png")
    readme = given.into / "README.md"
    if readme.exists():
        marked = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.S)
        readme.write_text(marked.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", readme.read_text()))


if __name__ == "__main__":
    main()
