"""Which expert takes what: the picture of one evaluation, drawn from its file.

L layers with experts, E experts, G groups of tokens
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.tracking.curve import GREY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#202124"
#: A colour stands for the multiple of an even share: white for even, in both panels and always.
COLOURS: dict[str, Any] = {"cmap": "RdBu_r", "vmin": 0.0, "vmax": 2.0}
#: Layers that are shown group by group, and cells of a panel up to which each has its figure.
LAYERS, NUMBERED = 4, 260
#: Inches.
ROW, LEFT, RIGHT, TOP, BOTTOM, GAP = 0.27, 0.75, 0.95, 1.05, 0.62, 0.35


def draw_routing(file: Path) -> Path:
    """Draw `step-N.npz` (see `llm.report.observatory`) to `step-N.png` beside it; its path.

    Left the load of every expert of every layer; right, for up to four layers from first to last,
    how the tokens of each skill and class are spread over the experts: each row of a layer adds up
    to 100%. Takes about a quarter of a second.
    """
    with np.load(file) as archive:
        seen = {name: archive[name] for name in archive.files}
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = _figure(seen)
        path = file.with_suffix(".png")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
        try:
            figure.savefig(temporary, dpi=130, facecolor="white", metadata={"Software": None})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _figure(seen: dict[str, np.ndarray]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    load_LE = seen["load_LE"]
    n_layers, n_experts = load_LE.shape
    titles = [title for title in ("skill", "token") if f"{title}_LGE" in seen]
    shown = sorted({round(i) for i in np.linspace(0, n_layers - 1, min(n_layers, LAYERS))})
    labels, shares_LGE = _rows(seen, titles)

    cell = min(0.46, 6.0 / n_experts)
    load_size = max(cell * n_experts, 1.5), min(max(ROW * n_layers, 1.2), 5.5)
    names_width = 0.085 * max(map(len, labels), default=0) + 0.15
    part = max(min(0.42, 3.4 / n_experts) * n_experts, 1.2)
    groups_size = len(shown) * (part + 0.1) - 0.1, ROW * len(labels)
    height = max(load_size[1], groups_size[1] if titles else 0.0) + TOP + BOTTOM
    width = LEFT + load_size[0] + RIGHT
    if titles:
        width += names_width + groups_size[0] + GAP
    width = max(width, 6.5)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def place(left: float, top: float, size: tuple[float, float]) -> "Axes":
        box = (left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height)
        return figure.add_axes(box)

    _headline(figure, seen, height)
    axes = place(LEFT, TOP, load_size)
    image = _cells(axes, load_LE * n_experts, load_LE, figure)
    axes.set_title("Load of each expert", fontsize=10)
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    _whole(axes, n_layers, n_experts)
    left = LEFT + load_size[0] + 0.12
    bar = figure.colorbar(
        image, cax=place(left, TOP, (0.12, load_size[1])), extend="max", ticks=[0, 1, 2]
    )
    bar.ax.set_yticklabels(["none", "even", "2× +"], fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)

    left = LEFT + load_size[0] + RIGHT + names_width
    for number, layer in enumerate(shown if titles else []):
        axes = place(left + number * (part + 0.1), TOP, (part, groups_size[1]))
        _cells(axes, shares_LGE[layer] * n_experts, shares_LGE[layer], figure)
        _whole(axes, 0, n_experts)
        axes.set_yticks(range(len(labels)) if number == 0 else [], labels if number == 0 else [])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
        for edge in np.flatnonzero(_breaks(seen, titles)):
            axes.axhline(edge + 0.5, color="white", linewidth=5)
        axes.set_xlabel("expert")
        name = f"layer {layer}"
        axes.set_title(f"Who takes what: {name}" if number == 0 and part > 1.9 else name, fontsize=10)
    return figure


def _headline(figure: "Figure", seen: dict[str, np.ndarray], height: float) -> None:
    facts = [f"busiest expert {seen['layers_max_violation'].max() + 1:.2f}× the mean"]
    unused = int(seen["layers_unused"].sum())
    facts.append(f"{unused} unused" if unused else "none unused")
    if "layers_agreement" in seen:
        facts.append(f"{seen['layers_agreement'].mean():.0%} chosen as at the evaluation before")
    if "layers_dropped" in seen:
        facts.append(f"{seen['layers_dropped'].mean():.1%} dropped")
    for y, text, style in (
        (0.22, f"Experts at step {int(seen['step']):,}", {"fontsize": 12, "fontweight": "bold"}),
        (0.5, ", ".join(facts), {"fontsize": 9.5, "color": INK}),
    ):
        figure.text(0.012, 1 - y / height, text, ha="left", va="center", **style)
    figure.text(
        0.988,
        1 - 0.22 / height,
        str(seen["title"]),
        ha="right",
        va="center",
        fontsize=8.5,
        color=GREY,
        family="DejaVu Sans Mono",
    )


def _rows(seen: dict[str, np.ndarray], titles: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Labels with the share of all tokens, and each group's split over the experts (L, G, E)."""
    labels, shares = [], []
    for title in titles:
        taken_LGE = seen[f"{title}_LGE"]
        size_G = taken_LGE.sum((0, 2)) / taken_LGE.sum()
        labels += [
            f"{name}  {_percent(size)}"
            for name, size in zip(seen[f"{title}_names"], size_G, strict=True)
        ]
        shares.append(taken_LGE / np.maximum(taken_LGE.sum(2, keepdims=True), 1))
    return labels, np.concatenate(shares, axis=1) if shares else np.zeros((0, 0, 0))


def _breaks(seen: dict[str, np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """True behind the last row of each criterion but the last."""
    sizes = [len(seen[f"{title}_names"]) for title in titles]
    breaks = np.zeros(sum(sizes), bool)
    breaks[np.cumsum(sizes)[:-1] - 1] = True
    return breaks


def _cells(axes: "Axes", relative: np.ndarray, shares: np.ndarray, figure: "Figure") -> Any:
    image = axes.imshow(relative, aspect="auto", **COLOURS)
    if relative.size <= NUMBERED and relative.shape[1] <= 10:
        for (row, column), share in np.ndenumerate(shares):
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(relative[row, column] - 1) > 0.65 else INK,
            )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _whole(axes: "Axes", n_layers: int, n_experts: int) -> None:
    """Ticks at whole numbers, about ten of them."""
    for size, axis in ((n_experts, axes.xaxis), (n_layers, axes.yaxis)):
        axis.set_ticks(range(0, size, -(-size // 12) if size else 1))


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"
