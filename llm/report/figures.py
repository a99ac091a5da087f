"""The figures of a report, each with the data that it shows as CSV beside it."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.report.collect import Result
from llm.report.leaderboard import Standing
from llm.report.marks import (
    COLORS,
    MARKERS,
    asymptote,
    floor_line,
    frontier,
    legend,
    log_axis,
    number,
    styles,
    zoom,
)
from llm.report.scaling import Law, Parabola
from llm.report.series import Series, over_experts, over_rates
from llm.report.statistics import mean_interval
from llm.tracking.curve import GREY, STYLE
from llm.tracking.progress import brief

#: Inches of the widest figures.
WIDE = 12.6
#: Arms that are drawn with a curve of their own; more are told apart by nobody.
MOST = 12


@dataclass(frozen=True)
class Picture:
    """A figure on disk: its file names and what it says."""

    name: str
    title: str
    words: str  # a caption in a sentence or two
    width: float = WIDE  # inches


class Artist:
    """Draws into one folder; `floor` is the lowest loss that is possible, where it is known.

    Args:
        results: of all runs
        rows: the leaderboard, whose order numbers the arms
    """

    def __init__(self, folder: Path, results: list[Result], rows: list[Standing]):
        self.folder, self.results = folder, [r for r in results if r.finished and r.repeats is None]
        self.arms = {row.label: row.results for row in rows}
        self.numbers = {row.label: str(i) for i, row in enumerate(rows, start=1)}
        floors = {round(r.facts["floor"], 6) for r in self.results if r.facts.get("floor")}
        self.floor = floors.pop() if len(floors) == 1 else None
        self.styles = styles(self.arms)

    def against_spending(self) -> Picture | None:
        """Loss against what was spent under way: tokens, active FLOPs, wall time."""
        if not self.arms:
            return None
        kinds: list[tuple[str, str, Callable[[Result, Any], float | None]]] = [
            ("tokens", "tokens", lambda r, p: p.tokens),
            ("flops", "active FLOPs", lambda r, p: p.tokens * r.facts["flops_per_token"]),
            ("seconds", "wall time (s)", lambda r, p: p.seconds),
        ]
        rows: list[Sequence[Any]] = []
        with self._figure("spending", 3, 4.2) as axes:
            for ax, (name, label, amount) in zip(axes, kinds, strict=True):
                ends = []
                for i, (arm, runs) in enumerate(self.arms.items()):
                    curve = _mean_curve(runs, amount)
                    rows += [(arm, name, x, y, n) for x, y, n in curve]
                    if i >= MOST or not curve:
                        continue
                    xs, ys = [x for x, _, _ in curve], [y for _, y, _ in curve]
                    every = max(1, len(xs) // 5)
                    style = {**self.styles[arm], "markersize": 4, "markevery": (i % every, every)}
                    ax.plot(xs, ys, label=self._name(arm), **style)
                    ends.append((xs[-1], ys[-1], self.numbers[arm], self.styles[arm]["color"]))
                log_axis(ax, label)
                deep = zoom(ax, self.floor)
                number(ax, ends)
            axes[0].set_ylabel("validation loss (nats a token)")
            legend(axes[0].figure, axes[0])
        self._csv("spending", ("arm", "axis", "amount", "val_loss", "seeds"), rows)
        words = "Means over seeds at each evaluation; dense arms black to grey and dashed. "
        words += "Numbers are places on the leaderboard." + self._beneath(deep)
        if len(self.arms) > MOST:
            words += f" The best {MOST} of {len(self.arms)} arms; the CSV has the rest as well."
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
        with self._figure("size", 4, 3.6) as axes:
            for ax, (name, label, amount) in zip(axes, kinds, strict=True):
                dense, places = [], []
                for arm, runs in self.arms.items():
                    x = float(np.mean([amount(run) for run in runs]))
                    mean = mean_interval([run.loss for run in runs])
                    rows.append((arm, name, x, mean.mean, mean.half, mean.n))
                    style = {**self.styles[arm], "linestyle": "none", "markersize": 5}
                    error = [[mean.half], [mean.half]] if mean.half is not None else None
                    ax.errorbar(x, mean.mean, error, label=self._name(arm), capsize=2, **style)
                    places.append((x, mean.mean, self.numbers[arm], self.styles[arm]["color"]))
                    if runs[0].is_dense:
                        dense.append((x, mean.mean))
                if len(dense) > 1:
                    xs, ys = frontier(dense)
                    ax.plot(xs, ys, color="black", linestyle="--", linewidth=0.8, zorder=0)
                ax.margins(x=0.12)
                log_axis(ax, label)
                deep = self._floor_line(ax, [mean for _, mean, *_ in places])
                number(ax, places)
            axes[0].set_ylabel("validation loss (nats a token)")
            if len(self.arms) <= MOST:
                legend(axes[0].figure, axes[0])
        self._csv("size", ("arm", "axis", "amount", "val_loss", "half_interval", "seeds"), rows)
        words = "Each point an arm with its place on the leaderboard, its bar the 95% interval over"
        words += (
            " seeds. Dense arms are black to grey; dashed: the best of them so far, going right."
            + self._beneath(deep)
        )
        return Picture("size", "Loss against what the model is", words)

    def against_experts(self) -> Picture | None:
        """Loss against the number of experts, a line for each size of model."""
        return self._lines(
            "experts",
            "Loss against the number of experts",
            over_experts(self.results),
            "experts (1: dense)",
            2,
            "Means and 95% intervals over seeds; the runs of a line are equal in everything else.",
        )

    def against_lr(self) -> Picture | None:
        """Loss against the learning rate, a line for each arm but for its rate."""
        return self._lines(
            "learning_rate",
            "Sensitivity to the learning rate",
            over_rates(self.results),
            "peak learning rate",
            10,
            "Means and 95% intervals over seeds; runs that diverged are not in it but in the list.",
        )

    def balance(self) -> Picture | None:
        """How evenly tokens are spread over experts at the end, and how many are dropped."""
        rows: list[tuple[str, float, float | None, int]] = []
        for arm, runs in self.arms.items():
            imbalance = [r.last["moe/max_over_mean"] for r in runs if "moe/max_over_mean" in r.last]
            if imbalance:
                dropped = [value for r in runs for value in [_dropped(r.last)] if value is not None]
                share = sum(dropped) / len(dropped) if dropped else None
                rows.append((arm, sum(imbalance) / len(imbalance), share, len(runs)))
        if not rows:
            return None
        drops = any(row[2] for row in rows)
        names = [self._name(row[0]) for row in rows][::-1]
        height = 1.1 + 0.28 * len(rows)
        width = 7.2 + 4.2 * drops
        with self._figure("balance", 1 + drops, height, width) as axes:
            axes[0].barh(names, [row[1] for row in rows][::-1], color=COLORS[0], height=0.6)
            axes[0].axvline(1.0, color=GREY, linewidth=1)
            axes[0].set_xlabel("busiest expert's load / mean")
            if drops:
                shares = [100 * (row[2] or 0.0) for row in rows][::-1]
                axes[1].barh(names, shares, color=COLORS[1], height=0.6)
                axes[1].set_xlabel("dropped (% of tokens)")
                axes[1].set_xlim(0, max(1.0, 1.1 * max(shares)))
                axes[1].set_yticklabels([])
            for ax in axes:
                ax.grid(axis="x")
                ax.grid(visible=False, axis="y")
                ax.tick_params(axis="y", labelsize=8)
        self._csv("balance", ("arm", "max_over_mean", "dropped", "seeds"), rows)
        words = "At the last evaluation of each run, over seeds. A load of 1 is an even one."
        if not drops:
            words += " No token is dropped."
        return Picture("balance", "Balance of the experts", words, width)

    def law(self, law: Law, n: np.ndarray, d: np.ndarray, loss: np.ndarray, name: str) -> Picture:
        """The fitted law over the runs that it is fitted to, dashed where it is extrapolated."""
        rows = [(x, t, y, float(law(x, t))) for x, t, y in zip(n, d, loss, strict=True)]
        with self._figure("scaling", 2, 4.0, width=10.4) as axes:
            for i, size in enumerate(sorted(set(n))):
                chosen = n == size
                style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
                points = {**style, "markersize": 4, "linestyle": "none"}
                axes[0].plot(d[chosen], loss[chosen], label=brief(size), **points)
                inside = np.geomspace(d[chosen].min(), d[chosen].max(), 60)
                beyond = np.geomspace(d[chosen].max(), 10 * d.max(), 60)
                color = style["color"]
                axes[0].plot(inside, law(size, inside), color=color)
                axes[0].plot(beyond, law(size, beyond), color=color, linestyle=":", linewidth=1)
                fitted = np.asarray(law(n[chosen], d[chosen]))
                axes[1].plot(fitted, 1000 * (loss[chosen] - fitted), **points)
            log_axis(axes[0], "tokens")
            axes[0].set_ylabel("validation loss (nats a token)")
            axes[0].legend(title=name, fontsize=8, title_fontsize=8)
            floor_line(axes[0], self.floor, 0.0, math.inf)
            asymptote(axes[0], law.E, self.floor)
            axes[0].margins(y=0.08)
            axes[1].axhline(0, color=GREY, linewidth=1)
            axes[1].set_xlabel("fitted loss (nats a token)")
            axes[1].set_ylabel("residual (thousandths of a nat)")
        self._csv("scaling", ("parameters", "tokens", "val_loss", "fitted"), rows)
        words = "Lines: the fit; dotted: extrapolated beyond what was trained. "
        words += "Right: what it misses, in the same marks."
        return Picture("scaling", "Scaling law", words, 10.4)

    def isoflops(self, groups: list[tuple[Parabola, np.ndarray, np.ndarray]], name: str) -> Picture:
        """Loss against size at equal compute, with the parabolas' minima."""
        rows: list[Sequence[Any]] = []
        with self._figure("isoflop", 1, 4.0, width=6.4) as axes:
            for i, (curve, n, loss) in enumerate(groups):
                color = COLORS[i % len(COLORS)]
                label = f"{brief(curve.flops)} FLOPs"
                points = {"color": color, "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
                axes[0].plot(n, loss, linestyle="none", label=label, **points)
                low, high = min(n.min(), curve.n_best), max(n.max(), curve.n_best)
                xs = np.geomspace(low, high, 80)
                ys = np.polyval(curve.coefficients, np.log(xs))
                inside = (xs >= n.min()) & (xs <= n.max())
                axes[0].plot(xs[inside], ys[inside], color=color)
                axes[0].plot(xs[~inside], ys[~inside], color=color, linestyle=":")
                marker = "*" if curve.inside else "x"
                axes[0].plot(curve.n_best, curve.loss_best, marker, color=color, markersize=11)
                rows += [(curve.flops, x, y) for x, y in zip(n, loss, strict=True)]
            log_axis(axes[0], name)
            axes[0].set_ylabel("validation loss (nats a token)")
            axes[0].legend(fontsize=8)
            self._floor_line(axes[0], [x for _, _, losses in groups for x in losses])
        self._csv("isoflop", ("flops", "parameters", "val_loss"), rows)
        words = "★ the best size at that compute; × one that lies outside the sizes trained."
        return Picture("isoflop", "Loss at equal compute", words, 6.4)

    def _lines(
        self, name: str, title: str, lines: Series, label: str, base: int, words: str
    ) -> Picture | None:
        """A line for each entry, None where there is none."""
        if not lines:
            return None
        rows: list[Sequence[Any]] = []
        with self._figure(name, 1, 4.0, width=6.4) as axes:
            for i, (line, values) in enumerate(lines.items()):
                xs = sorted(values)
                means = [mean_interval(values[x]) for x in xs]
                rows += [(line, x, m.mean, m.half, m.n) for x, m in zip(xs, means, strict=True)]
                axes[0].errorbar(
                    xs,
                    [m.mean for m in means],
                    [m.half or 0.0 for m in means],
                    color=COLORS[i % len(COLORS)],
                    label=line,
                    capsize=3,
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=5,
                    linewidth=1.4,
                )
            axes[0].set_xscale("log", base=base)
            ticks = sorted({x for values in lines.values() for x in values})
            if base == 2 or len(ticks) < 7:
                axes[0].set_xticks(ticks, [f"{x:g}" for x in ticks])
                axes[0].minorticks_off()
            axes[0].set_xlabel(label)
            axes[0].set_ylabel("validation loss (nats a token)")
            losses = [x for values in lines.values() for found in values.values() for x in found]
            words += self._beneath(self._floor_line(axes[0], losses))
            if len(lines) <= MOST:
                legend(axes[0].figure, axes[0])
        self._csv(name, ("line", label, "val_loss", "half_interval", "runs"), rows)
        if len(lines) == 1:
            words = f"{words} Of {next(iter(lines))}."
        return Picture(name, title, words, 6.4)

    def _floor_line(self, ax: Any, losses: Sequence[float]) -> bool:
        return floor_line(ax, self.floor, min(losses), max(losses))

    def _beneath(self, drawn: bool) -> str:
        """A sentence for a floor that lies below a picture."""
        outside = self.floor is not None and not drawn
        return f" The known floor, {self.floor:.4f}, lies below the picture." if outside else ""

    def _name(self, arm: str) -> str:
        return f"{self.numbers[arm]}  {arm}"

    @contextmanager
    def _figure(self, name: str, n: int, height: float, width: float = WIDE) -> Iterator[Any]:
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
            figure.savefig(file, dpi=200, facecolor="white", metadata={"Software": None})

    def _csv(self, name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        write_csv(self.folder / f"{name}.csv", head, rows)


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a head; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(["" if v is None else v for v in row] for row in rows)


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


def _dropped(row: dict[str, Any]) -> float | None:
    names = [name for name in row if name.startswith("moe/") and "drop" in name]
    values = [row[name] for name in names if isinstance(row[name], float | int)]
    return values[0] if values else None
