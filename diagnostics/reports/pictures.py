"""The pictures of ``visualization/``: what each layer loses, the scores that decided it, the raw gradients.

Every title states the fact that the picture shows; layers run along x, original numbering.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.failures import convenience
from core.kinds import TABLE
from core.measured import GRADIENTS_OF_OUTPUTS, GRADIENTS_OF_WEIGHTS, GradientStatistics, Importance
from core.plan import PruningPlan
from diagnostics.findings.by_layer import block_quantiles
from diagnostics.findings.diagnosis import Diagnosis
from diagnostics.findings.quantities import Measured, Scores
from diagnostics.reports.canvas import (
    BARE,
    EXTREME,
    FROZEN,
    GREEN,
    INK,
    KIND_COLOURS,
    QUIET,
    VERMILLION,
    WHOLE,
    add_legend,
    drawing,
    level,
    log_axis,
    new_figure,
    save,
    shade,
)
from diagnostics.wording import name_layers, percent, percent_range, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_NAME = 40  # characters of a list of layers that still fit into a title
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SYMBOLS = {GRADIENTS_OF_WEIGHTS: "∂L/∂w", GRADIENTS_OF_OUTPUTS: "∂L/∂y"}
ROOM = 0.8  # of the distance between two layers, shared by the kinds of block


def draw_pictures(
    folder: Path,
    diagnosis: Diagnosis,
    plan: PruningPlan,
    importance: Importance | None,
    scores: Scores | None,
    warnings: list[str],
) -> list[Path]:
    """Draw into ``folder``, return what was written: rates always, scores and gradients where measured.

    A picture that cannot be drawn or written is a sentence in ``warnings``; the others are drawn.
    """
    written: list[Path] = []
    with convenience("there are no pictures", warnings), drawing():
        with convenience("the picture of rates could not be drawn", warnings):
            written.append(draw_rates(folder / "pruning_ratio_by_layer.png", diagnosis, plan))
        if scores is not None:
            with convenience("the picture of scores could not be drawn", warnings):
                written.append(draw_scores(folder / "score_distribution.png", diagnosis, plan, scores))
        if importance is not None and importance.gradients is not None:
            with convenience("the picture of gradients could not be drawn", warnings):
                written.append(draw_gradients(folder / "gradient_by_layer.png", diagnosis, importance.gradients))
    return written


# What each layer loses


def draw_rates(path: Path, diagnosis: Diagnosis, plan: PruningPlan) -> Path:
    m, layers = diagnosis.measured, np.arange(plan.architecture.num_layers)
    subtitle = (
        f"of the prunable parameters in a layer; the model ({plan.architecture.model_type}) loses "
        f"{percent(plan.achieved_of_prunable)} of prunable ones, {percent(plan.achieved_of_total)} of all"
    )
    figure, (ax,) = new_figure(len(layers), 1, rates_title(m), subtitle)
    _mark_layers(ax, m)
    rates, offsets = 100 * plan.block_rates(), _offsets(plan)
    for kind, offset in offsets.items():
        width = 0.95 * ROOM / len(offsets)
        ax.bar(layers + offset, rates[:, kind], width=width, color=_colour(kind), label=_block_name(kind))
    ax.plot(
        layers,
        100 * m.rate,
        "D",
        color=INK,
        markersize=_marker(len(layers)) + 1,
        markeredgecolor="white",
        markeredgewidth=0.7,
        label=WHOLE,
        clip_on=False,
    )
    level(ax, 100 * m.achieved, INK, "--", f"whole model\n{percent(m.achieved)}", above=False)
    level(ax, 100 * m.threshold, VERMILLION, ":", f"layer extreme\nabove {percent(m.threshold)}", above=True)
    ax.set_ylim(0, 104)
    ax.set_ylabel("removed parameters, % of prunable")
    add_legend(ax)
    return save(figure, path)


def rates_title(m: Measured) -> str:
    if not m.plan.removed_params:
        return "Nothing is removed from any layer"
    if not len(m.extreme):
        subject = "unfrozen layers lose" if m.frozen_layers.any() else "each loses"
        return f"No layer is extreme: {subject} {percent_range(m.rate[m.open_layers].tolist() or [0.0], 0)}"
    layers, rates = m.extreme.tolist(), percent_range(m.rate[m.extreme].tolist(), 0)
    names = name_layers(layers).capitalize()
    subject = names if len(names) <= LONGEST_NAME else f"{len(layers)} layers"
    return f"{subject} {'lose' if len(layers) > 1 else 'loses'} {rates}"


def _block_name(kind: int) -> str:
    return f"{TABLE[kind].title} ({TABLE[kind].unit})"


def _colour(kind: int) -> str:
    return KIND_COLOURS[kind % len(KIND_COLOURS)]


def _offsets(plan: PruningPlan) -> dict[int, float]:
    """Where each kind of block stands beside a layer's tick: attention left, MLP right of it."""
    kinds = plan.architecture.kinds
    return {kind: (place - (len(kinds) - 1) / 2) * ROOM / len(kinds) for place, kind in enumerate(kinds)}


# The scores that decided it


def draw_scores(path: Path, diagnosis: Diagnosis, plan: PruningPlan, scores: Scores) -> Path:
    m = diagnosis.measured
    figure, axes = new_figure(
        plan.architecture.num_layers,
        2,
        scores_title(m, scores),
        "dot: median, thick bar: middle half, thin line: 5th to 95th percentile, all weighted by parameters",
    )
    panels = (
        (scores.per_parameter, "importance per parameter", "before the transforms"),
        (scores.score, "score that is ranked", "after the transforms"),
    )
    for ax, (values, label, when) in zip(axes, panels, strict=True):
        _mark_layers(ax, m)
        _draw_bands(ax, block_quantiles(plan.groups, values, QUANTILES), _offsets(plan))
        ax.set_ylabel(label)
        ax.set_title(when, fontsize=10, loc="right", color=QUIET)
    _draw_cut(axes[1], plan, scores.score)
    for ax in axes:
        add_legend(ax)
    return save(figure, path)


def scores_title(m: Measured, scores: Scores) -> str:
    before, after = m.score_range(m.median_before).ratio, m.score_range(m.median_after).ratio
    if before is None:
        return "Scores by layer: a median is zero, so there is no ratio between layers"
    first = f"Median scores of layers differ {times(before)}-fold"
    if np.array_equal(scores.per_parameter, scores.score):
        return f"{first}; no transform is used"
    return f"{first}, {times(after)}-fold after transforms" if after else f"{first} before transforms"


def _draw_bands(ax: "Axes", bands: np.ndarray, offsets: dict[int, float]) -> None:
    """bands: float64 (L, kinds, 5), quantiles of each block. Logarithmic where the medians are positive."""
    medians = bands[..., 2][np.isfinite(bands[..., 2])]
    logarithmic = len(medians) > 0 and bool(medians.min() > 0)
    if logarithmic:
        bands = np.maximum(bands, medians.min() / 30)  # a zero cannot be drawn: the line ends down here
    layers, size = np.arange(len(bands)), _marker(len(bands))
    for kind, offset in offsets.items():
        x, (p5, p25, p50, p75, p95) = layers + offset, bands[:, kind].T
        colour = _colour(kind)
        ax.vlines(x, p5, p95, color=colour, linewidth=0.25 * size, alpha=0.7)
        ax.vlines(x, p25, p75, color=colour, linewidth=0.8 * size)
        ax.plot(x, p50, "o", color="white", markeredgecolor=colour, markersize=size, label=_block_name(kind))
    if logarithmic:
        log_axis(ax)


def _draw_cut(ax: "Axes", plan: PruningPlan, score: np.ndarray) -> None:
    removed_layers = np.isin(plan.groups.layer, plan.removed_layers)
    removed = score[~plan.keep & ~removed_layers & np.isfinite(score)]
    if len(removed):
        level(ax, float(removed.max()), INK, "--", "highest score\nremoved", above=True)


# The raw gradients


def draw_gradients(path: Path, diagnosis: Diagnosis, gradients: GradientStatistics) -> Path:
    m, layers = diagnosis.measured, np.arange(diagnosis.measured.architecture.num_layers)
    subtitle = f"gradients of {gradients.source}, before any transform; band: smallest to largest window"
    figure, (upper, lower) = new_figure(len(layers), 2, gradients_title(m), subtitle, BARE)
    symbol = SYMBOLS.get(gradients.source, "∂L/∂a")
    low, mean, high, norm = (
        np.where(np.isfinite(values) & (values > 0), values, np.nan)
        for values in (gradients.min, gradients.mean, gradients.max, gradients.norm)
    )
    size = _marker(len(layers))
    upper.fill_between(layers, low, high, color=GREEN, alpha=0.2, linewidth=0, label="range over windows")
    upper.plot(layers, mean, "o-", color=GREEN, markersize=size, linewidth=1.2, label="mean over windows")
    upper.set_ylabel(f"mean |{symbol}|, nats")
    lower.plot(layers, norm, "s-", color=INK, markersize=size, linewidth=1.2, label="mean over windows")
    lower.set_ylabel(f"L2 norm of {symbol}, nats")
    for ax in (upper, lower):
        _mark_layers(ax, m)
        log_axis(ax)
        add_legend(ax)
    return save(figure, path)


def gradients_title(m: Measured) -> str:
    ratio, gradients = m.gradient_mean.ratio, m.gradients
    if ratio is None or gradients is None:
        return "Gradients are zero or not finite in some layers"
    low, high = int(np.argmin(gradients.mean)), int(np.argmax(gradients.mean))
    return f"Mean gradients differ {times(ratio)}-fold: smallest in layer {low}, largest in layer {high}"


# Marks


def _mark_layers(ax: "Axes", m: Measured) -> None:
    """Pale vermillion behind extreme layers, pale grey behind frozen ones; each named once in the legend."""
    shade(ax, m.extreme.tolist(), VERMILLION, 0.12, EXTREME)
    shade(ax, np.flatnonzero(m.frozen_layers).tolist(), QUIET, 0.15, FROZEN)


def _marker(num_layers: int) -> float:
    """Marker size in points: smaller where layers stand close."""
    return 5.0 if num_layers <= 16 else 4.0 if num_layers <= 40 else 2.6
