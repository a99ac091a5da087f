"""curve.png: one picture of a run, drawn from its metric log.

Losses against tokens; where the corpus is an instrument, the floor under them and what the
distance to it is made of; where there are experts, how the tokens are spread over them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.tracking.log import MetricLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5F6368"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#202124",
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": "#E8EAED",
    "legend.frameon": False,
}
EXCESS = "val/excess/"


def draw_curve(
    folder: Path, *, title: str | None = None, floor: float | None = None
) -> Path | None:
    """Draw `folder/metrics.jsonl` to `folder/curve.png`; returns its path, None without a loss.

    Read: `train/loss`, `val/loss`, `val/floor` (nats per token), `val/excess/SKILL` (parts that
    add up to the distance from the floor) and `moe/load` (layers × experts, or experts). `floor`
    is for logs that do not have it. The file is replaced as a whole. Takes a quarter to half a
    second, and at first a second or two more for the import of matplotlib.
    """
    folder = Path(folder)
    rows = MetricLog.read(folder / MetricLog.filename)
    if not any("train/loss" in row or "val/loss" in row for row in rows):
        return None
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = _figure(rows, title if title is not None else folder.resolve().name, floor)
        path = folder / "curve.png"
        temporary = folder / f".curve.{os.getpid()}.png"
        try:
            figure.savefig(temporary, dpi=150, facecolor="white", metadata={"Software": None})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _figure(rows: list[dict[str, Any]], title: str, floor: float | None) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known_floor = _last(rows, "val/floor")
    floor = known_floor if known_floor is not None else floor
    excess = _last_excess(rows)
    load = _last(rows, "moe/load")
    if load and not isinstance(load[0], list):
        load = [load]
    widths = [6.4] + [3.6] * bool(excess) + [4.2] * bool(load)
    figure = Figure(figsize=(sum(widths) + 0.6, 4.4))
    figure.set_layout_engine("constrained", wspace=0.06, w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0].tolist()
    figure.suptitle(title, x=0.012, ha="left", fontsize=10, color=GREY, family="DejaVu Sans Mono")
    _draw_losses(axes.pop(0), rows, floor)
    if excess:
        _draw_excess(axes.pop(0), excess)
    if load:
        _draw_load(figure, axes.pop(0), load)
    return figure


def _draw_losses(axes: "Axes", rows: list[dict[str, Any]], floor: float | None) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import EngFormatter

    halo = [withStroke(linewidth=2.5, foreground="white")]
    tokens, losses = _series(rows, "train/loss")
    val_tokens, val_losses = _series(rows, "val/loss")
    smooth = _smoothed(losses)
    if len(losses) > 20:
        axes.plot(tokens, losses, color=BLUE, alpha=0.22, linewidth=0.8)
    axes.plot(tokens, smooth, color=BLUE, linewidth=1.6, label="training")
    if val_losses:
        axes.plot(
            val_tokens,
            val_losses,
            color=ORANGE,
            linewidth=1.4,
            marker="o",
            markevery=max(len(val_losses) // 20, 1),
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label="validation",
        )
        best = min(val_losses)
        at_the_end = val_losses[-1] == best
        axes.annotate(
            f"{best:.3f}",
            (val_tokens[val_losses.index(best)], best),
            xytext=(6, 0) if at_the_end else (0, 7),
            textcoords="offset points",
            ha="left" if at_the_end else "center",
            va="center" if at_the_end else "bottom",
            color=ORANGE,
            fontweight="bold",
            path_effects=halo,
        )
    if floor is not None:
        axes.axhline(floor, color=GREEN, linewidth=1.3, linestyle=(0, (5, 3)))
        axes.annotate(
            f"floor {floor:.3f}",
            (0.012, floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, -5),
            textcoords="offset points",
            va="top",
            color=GREEN,
            fontweight="bold",
            path_effects=halo,
        )
    points = sorted(zip([*tokens, *val_tokens], [*smooth, *val_losses], strict=True))
    low, high, fallen = _window(points, floor)
    raw = [*zip(tokens, losses, strict=True), *zip(val_tokens, val_losses, strict=True)]
    spike = max((p for p in raw if p[0] >= fallen), key=lambda p: p[1])
    if spike[1] - low > 1.5 * (high - low):  # beyond what noise at the end of the fall reaches
        axes.annotate(
            f"▲ {spike[1]:.4g}",
            (spike[0], high),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            color=BLUE,
            path_effects=halo,
        )
    axes.set_ylim(low, high)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Loss")
    axes.grid(axis="y")
    axes.legend(loc="upper right")


def _draw_excess(axes: "Axes", excess: dict[str, float]) -> None:
    names = sorted(excess, key=lambda name: excess[name])  # the largest ends on top
    values = [excess[name] for name in names]
    total = sum(values)
    height = 0.62 * min(len(values) / 4, 1.0)
    colors = [GREEN if value >= 0 else GREY for value in values]
    axes.barh(names, values, color=colors, height=height)
    for place, value in enumerate(values):
        share = f"  {value / total:.0%}" if total > 0 else ""
        axes.annotate(
            f"{value:.3f}{share}",
            (max(value, 0.0), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.margins(x=0.32)
    axes.set_xlim(left=min(0.0, 1.1 * min(values)))
    axes.tick_params(axis="y", length=0, labelcolor="#202124")
    axes.set_xlabel("nats per token")
    axes.set_title(f"Above the floor: {total:.3f}")
    axes.grid(axis="x")


def _draw_load(figure: "Figure", axes: "Axes", load: list[list[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    # Relative to an even load, so that a colour means the same for any number of experts.
    relative = [[value * len(layer) / (sum(layer) or 1.0) for value in layer] for layer in load]
    image = axes.imshow(relative, cmap="RdBu_r", vmin=0.0, vmax=2.0, aspect="auto")
    if len(relative) * len(relative[0]) <= 64:
        for layer, values in enumerate(relative):
            for expert, value in enumerate(values):
                axes.text(
                    expert,
                    layer,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if abs(value - 1) > 0.65 else "#202124",
                )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    axes.set_title("Expert load")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=24, extend="max", ticks=[0, 1, 2])
    bar.ax.set_yticklabels(["0", "even", "2×"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    pairs = [(row["tokens"], row[name]) for row in rows if row.get(name) is not None]
    return [tokens for tokens, _ in pairs], [value for _, value in pairs]


def _last(rows: list[dict[str, Any]], name: str) -> Any:
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)


def _last_excess(rows: list[dict[str, Any]]) -> dict[str, float]:
    for row in reversed(rows):
        names = [name for name in row if name.startswith(EXCESS) and row[name] is not None]
        if names:
            return {name.removeprefix(EXCESS): row[name] for name in names}
    return {}


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means over 4% of the run, narrower at its start so that the first fall keeps its place."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    reach = len(values) // 50 if len(values) > 200 else len(values) // 25
    result = []
    for i in range(len(values)):
        first = i - min(reach, i)
        end = min(2 * i - first + 1, len(values))
        result.append((sums[end] - sums[first]) / (end - first))
    return result


def _window(points: list[tuple[int, float]], floor: float | None) -> tuple[float, float, int]:
    """The losses worth looking at: all, but for the first fall from ln(vocabulary).

    `points` are (tokens, loss), smoothed and in order. Returns the lowest and the highest loss
    to show, and the tokens at which the fall has come into view. A later spike is in view too,
    unless it would flatten everything else.
    """
    values = [value for _, value in points]
    low = min(values if floor is None else [*values, floor])
    high = sorted(values)[max(int(0.97 * len(values)), 1) - 1]
    if max(values) - low <= 1.6 * (high - low) or len(values) < 20:
        high = max(values)
    fallen = next(place for place, value in enumerate(values) if value <= high)
    later = max(values[fallen:])
    if later - low <= 3 * (high - low):
        high = max(high, later)
    margin = 0.06 * (high - low) or 0.1
    return low - 1.5 * margin, high + margin, points[fallen][0]
