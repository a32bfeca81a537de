"""What all pictures share: size, colours, ticks, marks on layers, and writing without global state or dates.

Figures are made from ``matplotlib.figure.Figure`` directly, never through pyplot, and inside ``drawing()``, so that
neither the backend nor the settings of a calling program are touched or acted on. Colours are those of Okabe and Ito,
which colour-blind readers can tell apart. Places are given in inches and do not depend on what is drawn.
"""

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.files import write_atomically
from core.loggers import only_errors_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
INK, QUIET = "#222222", "#6E6E6E"
KIND_COLOURS = (BLUE, ORANGE, PURPLE, SKY)  # by kind, over again where there are more
DPI = 150

WHOLE, EXTREME, FROZEN = "whole layer", "extreme layer", "frozen layer"
LEGEND_RANK = {WHOLE: 1, EXTREME: 2, FROZEN: 3}  # everything else comes first

LEFT, BOTTOM = 0.85, 0.6  # margins around the plots, inches
BARE, LABELLED = 0.3, 1.15  # margin to the right, without and with names of levels
HEAD, PANEL, GAP = 1.15, 2.75, 0.5  # title and legend; one plot; between two plots, where a legend stands


BACKEND = "MPLBACKEND"


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, matplotlib draws by its own defaults: no ``matplotlibrc``, no backend that the environment names.

    Notebooks name one for all their child processes, and matplotlib fails at import where it is not installed. ``$`` in
    a name is a dollar, not a formula. What matplotlib says about caches and fonts stays off the console.
    """
    with _without_backend(), only_errors_of("matplotlib"):
        import matplotlib
    with only_errors_of("matplotlib"), matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        yield


@contextmanager
def _without_backend() -> Iterator[None]:
    """For the import, which reads the variable."""
    backend = os.environ.pop(BACKEND, None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ[BACKEND] = backend


def new_figure(
    num_layers: int, panels: int, title: str, subtitle: str, right: float = LABELLED
) -> "tuple[Figure, list[Axes]]":
    """A figure as wide as its layers need, ``panels`` plots one above the other that share the layer axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = min(16.0, max(9.0, 3.5 + 0.2 * num_layers))
    height = HEAD + panels * PANEL + (panels - 1) * GAP + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.2 / width, 1 - 0.15 / height, title, fontsize=14, weight="bold", color=INK, va="top")
    figure.text(0.2 / width, 1 - 0.48 / height, subtitle, fontsize=10, color=QUIET, va="top")
    figure.subplots_adjust(
        left=LEFT / width,
        bottom=BOTTOM / height,
        right=1 - right / width,
        top=1 - HEAD / height,
        hspace=GAP / PANEL,
    )
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for ax in axes:
        quieten(ax)
    layer_axis(axes[-1], num_layers)
    return figure, axes


def quieten(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(which="both", color=QUIET, labelcolor=INK, labelsize=9)
    ax.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    ax.set_axisbelow(True)


def layer_step(num_layers: int, most: int = 24) -> int:
    """Numbers stand on every such layer, so that no more than ``most`` do."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, num_layers) if num_layers <= most * step)


def layer_axis(ax: "Axes", num_layers: int, most: int = 24) -> None:
    """A tick a layer; numbers on all up to ``most`` layers, on every 2nd, 4th, 5th ... beyond."""
    step = layer_step(num_layers, most)
    ax.set_xticks(range(0, num_layers, step))
    ax.set_xticks(range(num_layers), minor=True)
    ax.set_xlim(-0.7, num_layers - 0.3)
    ax.set_xlabel("decoder layer", color=INK)


def log_axis(ax: "Axes") -> None:
    """Logarithmic y: powers of ten, or plain 1, 2, 5 where data span few of them. Call it after drawing."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log", nonpositive="mask")
    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def power_of_ten(value: float) -> str:
    """``1e-5``, as on the page of a run: nothing drawn is read as a formula."""
    return f"1e{round(math.log10(value))}"


def shade(ax: "Axes", layers: Iterable[int], colour: str, alpha: float, label: str) -> None:
    """A pale column behind each of the layers, one legend entry for all."""
    for number, layer in enumerate(layers):
        name = label if number == 0 else None
        ax.axvspan(layer - 0.5, layer + 0.5, color=colour, alpha=alpha, linewidth=0, zorder=0, label=name)


def level(ax: "Axes", y: float, colour: str, style: str, label: str, above: bool) -> None:
    """A horizontal line with its name in the right margin, above or below the height of the line."""
    ax.axhline(y, color=colour, linestyle=style, linewidth=1.3)
    ax.annotate(
        label,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(5, 2 if above else -2),
        textcoords="offset points",
        va="bottom" if above else "top",
        fontsize=9,
        color=colour,
    )


def add_legend(ax: "Axes") -> None:
    """One row above the plot, clear of the data; marks behind layers come last."""
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: LEGEND_RANK.get(labels[i], 0))
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=6,
        frameon=False,
        fontsize=9,
        borderpad=0.0,
        borderaxespad=0.6,
        handlelength=1.4,
        columnspacing=1.6,
    )


def save(figure: "Figure", path: Path) -> Path:
    """PNG at 150 dpi, atomic; without date and program version, so that equal pictures are equal files."""
    return write_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=DPI, metadata={"Software": None}, format="png")
    )
