"""The figures of a report, each with the data that it shows as CSV beside it."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.report.collect import Result
from llm.report.leaderboard import by_arm
from llm.report.scaling import Law, Parabola
from llm.report.statistics import mean_interval
from llm.tracking.curve import GREEN, GREY, STYLE

#: Okabe and Ito's palette without black, which is for dense arms, and yellow, which is too light.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX"
#: Arms that are drawn with a curve of their own; more are told apart by nobody.
MOST = 12


@dataclass(frozen=True)
class Picture:
    """A figure on disk: its file names and what it says."""

    name: str
    title: str
    words: str  # a caption in a sentence or two


class Artist:
    """Draws into one folder; `floor` is the lowest loss that is possible, where it is known."""

    def __init__(self, folder: Path, results: list[Result]):
        self.folder, self.results = folder, [r for r in results if r.finished]
        self.arms = by_arm(results)
        floors = {round(r.facts["floor"], 6) for r in self.results if r.facts.get("floor")}
        self.floor = floors.pop() if len(floors) == 1 else None
        self.styles = _styles(self.arms)

    def against_spending(self) -> Picture | None:
        """Loss against what was spent under way: tokens, active FLOPs, wall time."""
        if not self.arms:
            return None
        kinds: list[tuple[str, str, Callable[[Result, Any], float | None]]] = [
            ("tokens", "tokens", lambda r, p: p.tokens),
            ("flops", "active FLOPs", lambda r, p: p.tokens * r.facts["flops_per_token"]),
            ("seconds", "wall time (s)", lambda r, p: p.seconds),
        ]
        shown = list(self.arms.items())[:MOST]
        rows: list[Sequence[Any]] = []
        with self._figure("spending", 3, 3.9) as axes:
            for ax, (name, label, amount) in zip(axes, kinds, strict=True):
                for arm, runs in shown:
                    curve = _mean_curve(runs, amount)
                    rows += [(arm, name, x, y, n) for x, y, n in curve]
                    xs, ys = [x for x, _, _ in curve], [y for _, y, _ in curve]
                    ax.plot(xs, ys, label=arm, **self.styles[arm], markersize=0)
                ax.set_xscale("log")
                ax.set_xlabel(label)
                self._floor_line(ax)
                _zoom(ax, self.floor)
            axes[0].set_ylabel("validation loss (nats)")
            _legend(axes[0].figure, axes[0])
        self._csv("spending", ("arm", "axis", "amount", "val_loss", "seeds"), rows)
        words = "Means over seeds at each evaluation; dense arms black to grey and dashed."
        if len(self.arms) > MOST:
            words += f" The first {MOST} of {len(self.arms)} arms; the CSV has the rest as well."
        return Picture("spending", "Loss against what was spent", words)

    def against_size(self) -> Picture | None:
        """Final loss against active and total parameters, FLOPs and time, an arm a point."""
        if len(self.arms) < 2:
            return None
        kinds = [
            ("params_active", "active parameters", lambda r: r.facts["params_active"]),
            ("params_total", "total parameters", lambda r: r.facts["params_total"]),
            ("flops", "active FLOPs of training", lambda r: r.flops),
            ("seconds", "wall time (s)", lambda r: r.facts["seconds"]),
        ]
        rows: list[Sequence[Any]] = []
        with self._figure("size", 4, 3.3) as axes:
            for ax, (name, label, amount) in zip(axes, kinds, strict=True):
                dense = []
                for arm, runs in self.arms.items():
                    x = float(np.mean([amount(run) for run in runs]))
                    mean = mean_interval([run.loss for run in runs])
                    rows.append((arm, name, x, mean.mean, mean.half, mean.n))
                    style = {**self.styles[arm], "linestyle": "none"}
                    error = [[mean.half], [mean.half]] if mean.half is not None else None
                    ax.errorbar(x, mean.mean, error, label=arm, capsize=2, **style)
                    if runs[0].is_dense:
                        dense.append((x, mean.mean))
                if len(dense) > 1:
                    xs, ys = _frontier(dense)
                    ax.plot(xs, ys, color="black", linestyle="--", linewidth=1, zorder=0)
                ax.set_xscale("log")
                ax.set_xlabel(label)
                self._floor_line(ax)
            axes[0].set_ylabel("validation loss (nats)")
            if len(self.arms) <= MOST:
                _legend(axes[0].figure, axes[0])
        self._csv("size", ("arm", "axis", "amount", "val_loss", "half_interval", "seeds"), rows)
        words = "Each point an arm, its bar the 95% interval over seeds. Dense arms are grey; "
        words += "dashed: the best of them so far, going right."
        return Picture("size", "Loss against what the model is", words)

    def against_experts(self) -> Picture | None:
        """Loss against the number of experts, a line for each size of model."""
        sparse = [r for r in self.results if not r.is_dense]
        if len({r.config["moe"]["n_experts"] for r in sparse}) < 2:
            return None
        lines: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for result in self.results:
            model = result.config["model"]
            size = f"{model['d_model']} wide, {model['n_layers']} layers"
            lines[size][result.config["moe"].get("n_experts", 1)].append(result.loss)
        return self._lines(
            "experts",
            "Loss against the number of experts",
            lines,
            "experts (1: dense)",
            2,
            "Means and 95% intervals over all runs with so many experts, a line for each size.",
        )

    def against_lr(self) -> Picture | None:
        """Loss against the learning rate, a line for each arm but for its rate."""
        rates = [r.config["optimizer"].get("lr") for r in self.results]
        if len({rate for rate in rates if isinstance(rate, float)}) < 2:
            return None
        lines: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for result in self.results:
            rate = result.config["optimizer"].get("lr")
            if isinstance(rate, float):
                words = [word for word in result.label.split() if not word.startswith("lr=")]
                lines[" ".join(words) or "all"][rate].append(result.loss)
        return self._lines(
            "learning_rate",
            "Sensitivity to the learning rate",
            lines,
            "peak learning rate",
            10,
            "Means and 95% intervals over seeds; runs that diverged are not in it but in the list.",
        )

    def balance(self) -> Picture | None:
        """How evenly tokens are spread over experts at the end, and how many are dropped."""
        rows: list[Sequence[Any]] = []
        for arm, runs in self.arms.items():
            imbalance = [r.last["moe/max_over_mean"] for r in runs if "moe/max_over_mean" in r.last]
            if imbalance:
                dropped = [value for r in runs for value in [_dropped(r.last)] if value is not None]
                share = sum(dropped) / len(dropped) if dropped else 0.0
                rows.append((arm, sum(imbalance) / len(imbalance), share, len(runs)))
        if not rows:
            return None
        names = [row[0] for row in rows][::-1]
        height = 1.1 + 0.28 * len(rows)
        with self._figure("balance", 2, height, width=9.6) as axes:
            axes[0].barh(names, [row[1] for row in rows][::-1], color=COLORS[0], height=0.6)
            axes[0].axvline(1.0, color=GREY, linewidth=1)
            axes[0].set_xlabel("load of the busiest expert over the mean (1: even)")
            axes[1].barh(names, [100 * row[2] for row in rows][::-1], color=COLORS[1], height=0.6)
            axes[1].set_xlabel("dropped (% of tokens)")
            axes[1].set_xlim(0, max(1.0, *(110 * row[2] for row in rows)))
            axes[1].set_yticklabels([])
            for ax in axes:
                ax.grid(axis="x")
                ax.grid(visible=False, axis="y")
        self._csv("balance", ("arm", "max_over_mean", "dropped", "seeds"), rows)
        return Picture("balance", "Balance of the experts", "At the last evaluation of each run.")

    def law(self, law: Law, n: np.ndarray, d: np.ndarray, loss: np.ndarray, name: str) -> Picture:
        """The fitted law over the runs that it is fitted to, dashed where it is extrapolated."""
        rows = [(x, t, y, float(law(x, t))) for x, t, y in zip(n, d, loss, strict=True)]
        with self._figure("scaling", 2, 4.0, width=10.4) as axes:
            for i, size in enumerate(sorted(set(n))):
                chosen = n == size
                color = COLORS[i % len(COLORS)]
                axes[0].plot(d[chosen], loss[chosen], MARKERS[0], color=color, markersize=4)
                inside = np.geomspace(d[chosen].min(), d[chosen].max(), 60)
                beyond = np.geomspace(d[chosen].max(), 10 * d.max(), 60)
                axes[0].plot(inside, law(size, inside), color=color, label=f"{size / 1e6:.3g}M")
                axes[0].plot(beyond, law(size, beyond), color=color, linestyle=":", linewidth=1)
            axes[0].axhline(law.E, color=GREY, linewidth=1.2)
            axes[0].annotate(
                f"E = {law.E:.3f}",
                (0.99, law.E),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color=GREY,
            )
            axes[0].set_xscale("log")
            axes[0].set_xlabel("tokens")
            axes[0].set_ylabel("validation loss (nats)")
            axes[0].legend(title=name, fontsize=8)
            self._floor_line(axes[0])
            fitted = np.asarray(law(n, d))
            axes[1].plot(fitted, 1000 * (loss - fitted), MARKERS[0], color=COLORS[0], markersize=4)
            axes[1].axhline(0, color=GREY, linewidth=1)
            axes[1].set_xlabel("fitted loss (nats)")
            axes[1].set_ylabel("residual (thousandths of a nat)")
        self._csv("scaling", ("parameters", "tokens", "val_loss", "fitted"), rows)
        words = (
            "Lines: the fit; dotted: extrapolated beyond what was trained. Right: what it misses."
        )
        return Picture("scaling", "Scaling law", words)

    def isoflops(self, groups: list[tuple[Parabola, np.ndarray, np.ndarray]], name: str) -> Picture:
        """Loss against size at equal compute, with the parabolas' minima."""
        rows: list[Sequence[Any]] = []
        with self._figure("isoflop", 1, 4.0, width=6.4) as axes:
            for i, (curve, n, loss) in enumerate(groups):
                color = COLORS[i % len(COLORS)]
                axes[0].plot(n, loss, MARKERS[0], color=color, markersize=4)
                low, high = min(n.min(), curve.n_best), max(n.max(), curve.n_best)
                xs = np.geomspace(low, high, 80)
                ys = np.polyval(curve.coefficients, np.log(xs))
                inside = (xs >= n.min()) & (xs <= n.max())
                label = f"{curve.flops:.2g} FLOPs"
                axes[0].plot(xs[inside], ys[inside], color=color, label=label)
                axes[0].plot(xs[~inside], ys[~inside], color=color, linestyle=":")
                marker = "*" if curve.inside else "x"
                axes[0].plot(curve.n_best, curve.loss_best, marker, color=color, markersize=11)
                rows += [(curve.flops, x, y) for x, y in zip(n, loss, strict=True)]
            axes[0].set_xscale("log")
            axes[0].set_xlabel(name)
            axes[0].set_ylabel("validation loss (nats)")
            axes[0].legend(fontsize=8)
            self._floor_line(axes[0])
        self._csv("isoflop", ("flops", "parameters", "val_loss"), rows)
        words = "★ the best size at that compute; × one that lies outside the sizes trained."
        return Picture("isoflop", "Loss at equal compute", words)

    def _lines(
        self,
        name: str,
        title: str,
        lines: dict[str, dict[Any, list[float]]],
        label: str,
        base: int,
        words: str,
    ) -> Picture:
        rows: list[Sequence[Any]] = []
        with self._figure(name, 1, 4.0, width=6.4) as axes:
            for i, (line, values) in enumerate(lines.items()):
                xs = sorted(values)
                means = [mean_interval(values[x]) for x in xs]
                rows += [(line, x, m.mean, m.half, m.n) for x, m in zip(xs, means, strict=True)]
                color = COLORS[i % len(COLORS)]
                ys = [m.mean for m in means]
                axes[0].errorbar(
                    xs,
                    ys,
                    [m.half or 0.0 for m in means],
                    color=color,
                    label=line,
                    capsize=3,
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=5,
                    linewidth=1.4,
                )
            axes[0].set_xscale("log", base=base)
            if base == 2:
                ticks = sorted({x for values in lines.values() for x in values})
                axes[0].set_xticks(ticks, [str(x) for x in ticks])
            axes[0].set_xlabel(label)
            axes[0].set_ylabel("validation loss (nats)")
            self._floor_line(axes[0])
            if len(lines) <= MOST:
                axes[0].legend(fontsize=8)
        self._csv(name, ("line", label, "val_loss", "half_interval", "runs"), rows)
        return Picture(name, title, words)

    @contextmanager
    def _figure(self, name: str, n: int, height: float, width: float = 12.6) -> Iterator[Any]:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            figure = Figure(figsize=(width, height), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots(1, n, squeeze=False)[0]
            for ax in axes:
                ax.grid(axis="y")
            yield axes
            file = self.folder / f"{name}.png"
            figure.savefig(file, dpi=150, facecolor="white", metadata={"Software": None})

    def _floor_line(self, ax: Any) -> None:
        if self.floor is not None:
            ax.axhline(self.floor, color=GREEN, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0)

    def _csv(self, name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        write_csv(self.folder / f"{name}.csv", head, rows)


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a head; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(["" if v is None else v for v in row] for row in rows)


def _styles(arms: dict[str, list[Result]]) -> dict[str, dict[str, Any]]:
    """Dense arms dashed, from black to grey; others coloured."""
    found: dict[str, dict[str, Any]] = {}
    n_dense = sum(runs[0].is_dense for runs in arms.values())
    dense = sparse = 0
    for arm, runs in arms.items():
        if runs[0].is_dense:
            grey = 0.65 * dense / max(n_dense - 1, 1)
            color: Any = (grey, grey, grey)
            marker, line = MARKERS[dense % len(MARKERS)], "--"
            dense += 1
        else:
            color, line = COLORS[sparse % len(COLORS)], "-"
            marker = MARKERS[sparse // len(COLORS) % len(MARKERS)]
            sparse += 1
        found[arm] = {"color": color, "linestyle": line, "linewidth": 1.4, "marker": marker}
    return found


def _frontier(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The lowest loss up to each amount, as steps between the points that lower it."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return [x for x, _ in kept], [y for _, y in kept]


def _mean_curve(
    runs: list[Result], amount: Callable[[Result, Any], float | None]
) -> list[tuple[float, float, int]]:
    """(mean amount, mean loss, seeds) at each evaluation that all seeds have."""
    n = min(len(run.points) for run in runs)
    found = []
    for i in range(n):
        xs = [amount(run, run.points[i]) for run in runs]
        known = [x for x in xs if x is not None]
        if len(known) == len(xs):
            loss = sum(run.points[i].loss for run in runs) / len(runs)
            found.append((sum(known) / len(known), loss, len(runs)))
    return found


def _zoom(ax: Any, floor: float | None) -> None:
    """Leave out the first fall, which would flatten all differences."""
    ends = [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata()) > 2]
    every = [y for line in ax.lines if len(line.get_ydata()) > 2 for y in line.get_ydata()]
    if not ends:
        return
    low = min([*ends, floor] if floor is not None else ends)
    reach = max(ends) - low
    high = min(max(every), max(ends) + 1.5 * reach + 0.05 * abs(low))
    if math.isfinite(high) and high > low:
        ax.set_ylim(low - 0.06 * (high - low), high)


def _legend(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, min(4, len(labels), 170 // (8 + max(map(len, labels)))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _dropped(row: dict[str, Any]) -> float | None:
    names = [name for name in row if name.startswith("moe/") and "drop" in name]
    values = [row[name] for name in names if isinstance(row[name], float | int)]
    return values[0] if values else None
