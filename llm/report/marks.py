"""What tells the arms of a figure apart, in print and without colours as well.

An arm has a colour, a line, a marker and a number: its place on the leaderboard, which stands at
the end of its curve and beside its point.
"""

import math
from collections.abc import Sequence
from typing import Any

from llm.report.collect import Result
from llm.tracking.curve import GREEN, GREY
from llm.tracking.progress import brief

#: Okabe and Ito's palette without black, which is for dense arms, and yellow, which is too light.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX"
#: Dashes of dense arms; those with experts have whole lines.
_DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


def styles(arms: dict[str, list[Result]]) -> dict[str, dict[str, Any]]:
    """Dense arms dashed, from black to grey; others coloured."""
    found: dict[str, dict[str, Any]] = {}
    n_dense = sum(runs[0].is_dense for runs in arms.values())
    dense = sparse = 0
    for arm, runs in arms.items():
        if runs[0].is_dense:
            grey = 0.6 * dense / max(n_dense - 1, 1)
            color: Any = (grey, grey, grey)
            line = _DASHES[dense % len(_DASHES)]
            marker = MARKERS[dense % len(MARKERS)]
            dense += 1
        else:
            color, line = COLORS[sparse % len(COLORS)], "-"
            marker = MARKERS[(sparse + sparse // len(COLORS)) % len(MARKERS)]
            sparse += 1
        found[arm] = {"color": color, "linestyle": line, "linewidth": 1.4, "marker": marker}
    return found


def number(ax: Any, places: Sequence[tuple[float, float, str, Any]]) -> None:
    """Write each (x, y, text, colour) to the right of its place; those that would touch give way.

    Call it when the limits of the axes are what they will be.
    """
    (left, right), (low, high) = map(sorted, (ax.get_xlim(), ax.get_ylim()))
    across = math.log(right / left) if ax.get_xscale() == "log" else right - left
    gap = 0.042  # of the height, for one line of small text
    written: list[tuple[float, float]] = []
    for x, y, text, color in sorted(places, key=lambda place: place[1]):
        if not (low <= y <= high):
            continue
        along = (math.log(x / left) if ax.get_xscale() == "log" else x - left) / across
        up = (y - low) / (high - low)
        for other_along, other_up in written:
            if abs(other_along - along) < 0.06 and up < other_up + gap:
                up = other_up + gap
        written.append((along, up))
        ax.annotate(
            text,
            (along, up),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=7,
            color=color,
            va="center",
            annotation_clip=False,
        )


def log_axis(ax: Any, label: str) -> None:
    """A logarithmic x axis whose ticks are few and read as the tables do: 200k, 1M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = math.log10(high / low) if low > 0 else 1.0
    steps = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 2.5 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: brief(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label)


def floor_line(ax: Any, floor: float | None, low: float, high: float) -> bool:
    """Draw the lowest loss that is possible, named at its left end; whether that was done.

    It is left out where it would take more than half of the picture from losses of low to high.
    """
    if floor is None or low - floor > high - low:
        return False
    ax.axhline(floor, color=GREEN, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0)
    below = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(
        "known floor", (0.01, floor), xytext=(0, 3), fontsize=7, color=GREEN, va="bottom", **below
    )
    return True


def asymptote(ax: Any, value: float, floor: float | None) -> None:
    """The fitted E, named on the side where the floor is not."""
    ax.axhline(value, color=GREY, linewidth=1.2)
    above = floor is None or value >= floor
    ax.annotate(
        f"fitted E = {value:.3f}",
        (0.99, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3 if above else -3),
        textcoords="offset points",
        fontsize=8,
        ha="right",
        va="bottom" if above else "top",
        color=GREY,
    )


def frontier(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The lowest loss up to each amount, as steps between the points that lower it."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return [x for x, _ in kept], [y for _, y in kept]


def zoom(ax: Any, floor: float | None) -> bool:
    """Leave out the first fall, which would flatten all differences; whether the floor is drawn."""
    ends = [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata()) > 2]
    every = [y for line in ax.lines if len(line.get_ydata()) > 2 for y in line.get_ydata()]
    if not ends:
        return floor_line(ax, floor, 0.0, math.inf)
    low = min(ends)
    reach = max(ends) - low
    high = min(max(every), max(ends) + 1.5 * reach + 0.05 * abs(low))
    drawn = floor_line(ax, floor, low, high)
    low = min(low, floor) if drawn and floor is not None else low
    if math.isfinite(high) and high > low:
        ax.set_ylim(low - 0.06 * (high - low), high)
    return drawn


def legend(figure: Any, ax: Any) -> None:
    """Below the figure, in as many columns as the names allow."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, min(4, len(labels), 170 // (8 + max(map(len, labels)))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
