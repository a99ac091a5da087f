"""Which expert takes what: the picture of one evaluation, drawn from its file.

L layers with experts, E experts, G groups of tokens
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llm.tracking.curve import GREY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#202124"
#: A colour stands for a multiple of the even share: white is even, in all panels and pictures.
COLOURS: dict[str, Any] = {"cmap": "RdBu_r", "vmin": 0.0, "vmax": 2.0}
#: Layers that are shown group by group; cells of a panel up to which each has its figure.
LAYERS, NUMBERED = 4, 260
#: Criteria by which a file groups tokens, and what they are about.
GROUPS = {
    "skill": "skill needed next",
    "token": "token read",
}
NOTE = (
    "A row adds up to 100%; behind a name its share of all tokens.\n"
    "Colours: what an expert takes as a multiple of an even share."
)
#: Figures of each layer beside its load.
COLUMNS = {
    "max_violation": ("busiest\n× mean", lambda value: f"{value + 1:.2f}"),
    "effective_experts": ("effective\nexperts", lambda value: f"{value:.1f}"),
    "agreement": ("chosen as\nbefore", lambda value: f"{value:.0%}"),
    "dropped": ("dropped", lambda value: f"{value:.1%}"),
}
#: Inches.
ROW, COLUMN, LEFT, TOP, GAP = 0.27, 0.82, 0.6, 1.25, 0.45
WIDEST = 16.0


class Section(NamedTuple):
    """The rows of one criterion."""

    about: str
    labels: list[str]
    share_LGE: np.ndarray  # each group's choices over the experts: rows add up to 1


def draw_routing(file: Path) -> Path:
    """Draw `step-N.npz` (see `llm.report.observatory`) to `step-N.png` beside it; its path.

    Left the load of every expert of every layer; right, for up to four layers from first to last,
    how the tokens of each skill and class are spread over the experts. Takes a quarter to half a
    second.
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
    sections = _sections(seen)
    columns = [name for name in COLUMNS if f"layers_{name}" in seen and n_layers <= 24]
    shown = sorted({round(i) for i in np.linspace(0, n_layers - 1, min(n_layers, LAYERS))})

    load = max(min(0.46, 6.0 / n_experts) * n_experts, 1.5), min(max(ROW * n_layers, 0.8), 6.0)
    names = max((0.083 * len(label) for s in sections for label in s.labels), default=0.0) + 0.15
    part = max(min(0.42, 3.4 / n_experts) * n_experts, 1.0)
    heights = [ROW * len(section.labels) for section in sections]
    groups = len(shown) * (part + 0.1), sum(heights) + 0.35 * len(sections)
    # The groups stand beside the load, or below it where both are wide.
    left, begin = LEFT + load[0] + COLUMN * len(columns) + GAP + names, TOP
    width, height = left + groups[0], TOP + max(load[1] + 1.5, groups[1])
    if not sections:
        width = left - names
    elif width > WIDEST:
        width = max(left - names, names + groups[0])
        left, begin = names, TOP + load[1] + 2.0
        height = begin + groups[1]
    width, height = max(width, 6.5) + 0.15, height + 0.25
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def place(left: float, top: float, size: tuple[float, float]) -> "Axes":
        box = (left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height)
        return figure.add_axes(box)

    def write(left: float, top: float, text: str, **style: Any) -> None:
        style = {"va": "center", "fontsize": 9, "color": INK, **style}
        figure.text(left / width, 1 - top / height, text, **style)

    write(0.15, 0.25, f"Experts at step {int(seen['step']):,}", fontsize=12, fontweight="bold")
    write(0.15, 0.5, str(seen["title"]), fontsize=8.5, color=GREY, family="DejaVu Sans Mono")
    write(LEFT, TOP - 0.18, "Load of each expert", fontweight="bold")
    axes = place(LEFT, TOP, load)
    image = _cells(axes, load_LE)
    _ticks(axes.yaxis, n_layers)
    axes.set_ylabel("MoE layer", fontsize=9)
    axes.set_xlabel("expert", fontsize=9)
    for number, name in enumerate(columns):
        heading, form = COLUMNS[name]
        middle = LEFT + load[0] + (number + 0.5) * COLUMN
        write(middle, TOP - 0.22, heading, ha="center", fontsize=8, color=GREY)
        for layer, value in enumerate(seen[f"layers_{name}"]):
            write(middle, TOP + (layer + 0.5) * load[1] / n_layers, form(value), ha="center")
    bar = figure.colorbar(
        image,
        cax=place(LEFT, TOP + load[1] + 0.62, (min(load[0], 2.4), 0.11)),
        orientation="horizontal",
        extend="max",
        ticks=[0, 1, 2],
    )
    bar.ax.set_xticklabels(["none", "even", "2× or more"], fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    write(LEFT, TOP + load[1] + 1.25, NOTE, fontsize=8, color=GREY, linespacing=1.4)

    top = begin
    for section, size in zip(sections, heights, strict=True):
        write(left - 0.08, top - 0.14, section.about, ha="right", fontsize=8.5, color=GREY)
        for number, layer in enumerate(shown):
            across = left + number * (part + 0.1)
            axes = place(across, top, (part, size))
            _cells(axes, section.share_LGE[layer])
            axes.set_yticks(range(len(section.labels)) if number == 0 else [])
            if number == 0:
                axes.set_yticklabels(section.labels, fontsize=9, color=INK)
            if section is sections[0]:
                write(across, top - 0.18, f"Layer {layer}", fontweight="bold")
            if section is sections[-1]:
                axes.set_xlabel("expert", fontsize=9)
            else:
                axes.set_xticks([])
        top += size + 0.35
    return figure


def _sections(seen: dict[str, np.ndarray]) -> list[Section]:
    sections = []
    for title, about in GROUPS.items():
        if f"{title}_LGE" not in seen:
            continue
        taken_LGE = seen[f"{title}_LGE"]
        size_G = taken_LGE.sum((0, 2)) / max(taken_LGE.sum(), 1)
        names = zip(seen[f"{title}_names"], size_G, strict=True)
        labels = [f"{name}  {f'{size:.0%}' if size >= 0.01 else '<1%'}" for name, size in names]
        share_LGE = taken_LGE / np.maximum(taken_LGE.sum(2, keepdims=True), 1)
        sections.append(Section(about, labels, share_LGE))
    return sections


def _cells(axes: "Axes", share: np.ndarray) -> Any:
    """A heat map of shares whose rows add up to 1, in percent where there is room."""
    rows, n_experts = share.shape
    relative = share * n_experts
    image = axes.imshow(relative, aspect="auto", **COLOURS)
    if rows * n_experts <= NUMBERED and n_experts <= 10:
        for (row, column), value in np.ndenumerate(share):
            strong = abs(relative[row, column] - 1) > 0.65
            axes.text(
                column,
                row,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if strong else INK,
            )
        if rows > 1:
            axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
            axes.grid(which="minor", axis="y", color="white", linewidth=0.8)
    axes.set_axisbelow(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=8.5)
    _ticks(axes.xaxis, n_experts)
    return image


def _ticks(axis: Any, size: int) -> None:
    """Whole numbers, a dozen at most."""
    axis.set_ticks(range(0, size, -(-size // 12)))
