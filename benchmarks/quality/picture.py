"""Extra loss against ratio, one line a method: a row of plots for each text, a column for each model."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.quality.cells import Cell
from benchmarks.quality.methods import METHODS, OURS, is_variant
from benchmarks.quality.table import extra, rows_and_columns, unique
from diagnostics.reports.canvas import BLUE, GREEN, INK, ORANGE, QUIET, VERMILLION, log_axis, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SKY, PURPLE = "#56B4E9", "#CC79A7"  # the other two of Okabe and Ito that are legible on white
# One colour a selection; how it is repaired is the style of its line.
COLOURS = {
    "random": "#AAAAAA",
    "magnitude-uniform": "#AAAAAA",
    "magnitude": QUIET,
    "wanda-sp": SKY,
    "llm-pruner": PURPLE,
    "shortgpt": "#8C6D31",
    "taylor": BLUE,
    "taylor-log": BLUE,
    "fisher": VERMILLION,
    "flap": ORANGE,
    "flap-no-bias": ORANGE,
    "surgeon": GREEN,
    "slimgpt": "#5B8C00",
    "gisp": "#7A2048",
    "ours": INK,
}
DOTTED = ("random", "taylor-log", "flap-no-bias")
LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT, GAP = 0.8, 1.9, 0.95, 0.6, 3.1, 2.6, 0.45  # inches


def draw_losses(path: Path, cells: list[Cell]) -> Path:
    """PNG of published methods and the defaults, on the first calibration text; equal cells give equal files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = cells[0].setting.calibration
    cells = [cell for cell in cells if not is_variant(cell.setting.method) and cell.setting.calibration == first]
    models = unique(cells, lambda cell: cell.setting.model)
    texts = list(cells[0].nll)
    width = LEFT + len(models) * WIDTH + (len(models) - 1) * GAP + RIGHT
    height = TOP + len(texts) * HEIGHT + (len(texts) - 1) * GAP + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.2 / width, 1 - 0.15 / height, title(cells), fontsize=14, weight="bold", color=INK, va="top")
    says = (
        "loss above the dense model, mean over seeds; dashed: refitted, dash-dotted: trained; below 0 is off the scale"
    )
    figure.text(0.2 / width, 1 - 0.48 / height, says, fontsize=10, color=QUIET, va="top")
    figure.subplots_adjust(
        left=LEFT / width,
        right=1 - RIGHT / width,
        bottom=BOTTOM / height,
        top=1 - TOP / height,
        wspace=GAP / WIDTH,
        hspace=GAP / HEIGHT,
    )
    axes = figure.subplots(len(texts), len(models), sharex=True, squeeze=False)
    for row, text in zip(axes, texts, strict=True):
        for ax, model in zip(row, models, strict=True):
            _draw(ax, [cell for cell in cells if cell.setting.model == model], text)
            ax.set_title(f"{model}, {text}", fontsize=10, color=INK, loc="left")
        row[0].set_ylabel("extra nats/token", color=INK)
    for ax in axes[-1]:
        ax.set_xlabel("removed, % of prunable", color=INK)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", bbox_to_anchor=(1.0, 1 - TOP / height), frameon=False, fontsize=9)
    return save(figure, path)


def title(cells: list[Cell]) -> str:
    """Which method loses least on the first text at the middle ratio, over all models."""
    methods, ratios = rows_and_columns(cells)
    ratio, text = ratios[len(ratios) // 2], next(iter(cells[0].nll))
    by_model = [[c for c in cells if c.setting.model == model] for model in unique(cells, lambda c: c.setting.model)]

    def lost(method: str) -> float:
        return statistics.mean(value for some in by_model for value in extra(some, method, ratio, text))

    return f"{min(methods, key=lost)} loses least at {ratio:.0%}"


def selection_of(method: str) -> str:
    return method.partition("+")[0]


def style_of(method: str) -> str:
    if METHODS[method].trains:
        return "-."
    if method != selection_of(method):
        return "--"
    return ":" if method in DOTTED else "-"


def _draw(ax: "Axes", cells: list[Cell], text: str) -> None:
    methods, ratios = rows_and_columns(cells)
    for method in methods:
        colour = COLOURS[selection_of(method)]
        losses = [statistics.mean(extra(cells, method, ratio, text)) for ratio in ratios]
        achieved = [
            100 * statistics.mean(c.achieved for c in cells if (c.setting.method, c.setting.ratio) == (method, ratio))
            for ratio in ratios
        ]
        width = 2.6 if method == OURS else 1.3
        style = style_of(method)
        ax.plot(achieved, losses, style, marker="o", markersize=3, color=colour, linewidth=width, label=method)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(which="both", color=QUIET, labelcolor=INK, labelsize=9)
    ax.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    ax.set_axisbelow(True)
    log_axis(ax)


assert set(COLOURS) >= {selection_of(method) for method in METHODS if not is_variant(method)}
