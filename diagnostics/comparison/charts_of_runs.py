"""Two pictures of a comparison: what each layer loses, a small plot a run; and loss against ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.failures import convenience
from diagnostics.comparison.runs import Named
from diagnostics.reports.canvas import BLUE, GREEN, INK, ORANGE, QUIET, VERMILLION, drawing, layer_axis, quieten, save
from diagnostics.run_folder import number
from diagnostics.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("pruning_ratio_by_layer.png", "loss_against_ratio.png")
COLUMNS = 3
WIDTH, HEIGHT, HEAD = 4.2, 2.3, 0.9  # of one small plot, and of the title above them; inches
SHAPES = tuple((shape, colour) for shape in "osD^v" for colour in (BLUE, ORANGE, GREEN, VERMILLION, INK))


def draw_comparison(folder: Path, runs: Sequence[Named], warnings: list[str]) -> list[Path]:
    """What could be drawn: rates where a run tells them, loss where a pruned model was evaluated.

    A picture that cannot be drawn or written is a sentence in ``warnings``.
    """
    written: list[Path] = []
    with_rates, losses = [item for item in runs if item.run.rates], losses_by_dataset(runs)
    with convenience("there are no pictures", warnings), drawing():
        if with_rates:
            with convenience("the picture of rates could not be drawn", warnings):
                written.append(draw_rates(folder / PICTURES[0], with_rates))
        if losses:
            with convenience("the picture of losses could not be drawn", warnings):
                written.append(draw_losses(folder / PICTURES[1], losses))
    return written


def draw_rates(path: Path, runs: Sequence[Named]) -> Path:
    """One small plot a run, all with the same axes."""
    columns = min(COLUMNS, len(runs))
    figure, axes = _grid(
        len(runs), columns, "Pruning ratio by layer", "of the prunable parameters; red: extreme layers"
    )
    num_layers = max(len(item.run.rates) for item in runs)
    for index, (ax, item) in enumerate(zip(axes, runs, strict=True)):
        _draw_run(ax, item)
        layer_axis(ax, num_layers, 12)
        ax.set_ylim(0, 104)
        if index % columns == 0:
            ax.set_ylabel("removed, %", color=INK)
    return save(figure, path)


def _draw_run(ax: "Axes", item: Named) -> None:
    run = item.run
    extreme = run.extreme_layers or ()
    for layer, rate in enumerate(run.rates):
        if rate is not None:
            ax.bar(layer, 100 * rate, width=0.8, color=VERMILLION if layer in extreme else BLUE)
    if run.threshold is not None:
        ax.axhline(100 * run.threshold, color=VERMILLION, linestyle=":", linewidth=1.2)
    if run.of_prunable is not None:
        ax.axhline(100 * run.of_prunable, color=INK, linestyle="--", linewidth=1.0)
    size = "" if run.of_total is None else f", {percent(run.of_total)} of all removed"
    ax.set_title(f"{item.name}{size}", fontsize=10, loc="left", color=INK)


@dataclass(frozen=True)
class Loss:
    """of_total: removed fraction of all parameters. dense, pruned: held-out loss, nats per token."""

    name: str
    of_total: float
    dense: float | None
    pruned: float


def losses_by_dataset(runs: Sequence[Named]) -> dict[str, list[Loss]]:
    found: dict[str, list[Loss]] = {}
    for item in runs:
        for dataset in item.run.perplexity("pruned"):
            dense, pruned = (
                number(item.run.evaluation, side, "perplexity", dataset, "nll_nats_per_token")
                for side in ("dense", "pruned")
            )
            if pruned is not None and item.run.of_total is not None:
                found.setdefault(dataset, []).append(Loss(item.name, item.run.of_total, dense, pruned))
    return found


def draw_losses(path: Path, losses: Mapping[str, Sequence[Loss]]) -> Path:
    """One plot a dataset; a mark of its own for each run, named beside the plot so that names do not overlap."""
    figure, axes = _grid(len(losses), 1, "Loss against pruning ratio", "lower is better; runs from worst to best", 1.9)
    for ax, (dataset, points) in zip(axes, losses.items(), strict=True):
        for index, loss in sorted(enumerate(points), key=lambda item: -item[1].pruned):
            shape, colour = SHAPES[index % len(SHAPES)]
            label = f"{loss.name}  {loss.pruned:.3f}"
            ax.plot(100 * loss.of_total, loss.pruned, shape, color=colour, markersize=8, label=label, linestyle="")
        for dense in dict.fromkeys(loss.dense for loss in points if loss.dense is not None):
            label = f"dense  {dense:.3f}"
            ax.plot(0, dense, "o", color="white", markeredgecolor=INK, markersize=8, label=label, linestyle="")
        ax.margins(0.08, 0.15)
        ax.set_xlabel("removed parameters, % of all", color=INK)
        ax.set_ylabel("nats per token", color=INK)
        ax.set_title(dataset, fontsize=10, loc="left", color=QUIET)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0.0)
    return save(figure, path)


def _grid(count: int, columns: int, title: str, subtitle: str, stretch: float = 1.0) -> "tuple[Figure, list[Axes]]":
    """``count`` plots in rows of ``columns``. stretch: of one plot, leaving its right part to a legend if above 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    width, height = max(6.0, stretch * columns * WIDTH), HEAD + rows * HEIGHT * (1.3 if stretch > 1 else 1) + 0.3
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.2 / width, 1 - 0.15 / height, title, fontsize=14, weight="bold", color=INK, va="top")
    figure.text(0.2 / width, 1 - 0.48 / height, subtitle, fontsize=10, color=QUIET, va="top")
    right = 0.62 if stretch > 1 else 1 - 0.2 / width
    figure.subplots_adjust(0.75 / width, 0.6 / height, right, 1 - (HEAD + 0.2) / height, 0.15, 0.6)
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for ax in axes:
        quieten(ax)
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, list(axes[:count])
