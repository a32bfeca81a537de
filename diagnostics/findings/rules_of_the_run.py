"""Rules on what the run could not do, or did beside ranking."""

import math
from decimal import Decimal

import numpy as np

from core.kinds import ATTENTION
from core.transforms import Remedy
from diagnostics.findings.finding import Finding
from diagnostics.findings.quantities import Measured
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.wording import name_layers, percent

BUDGET_GAP = 0.01  # of the budget
LOW_OVERLAP = 0.6  # of two plans from half the windows each; docs/judging.md, Stability, says what it was chosen by


def skipped_windows(m: Measured, active: ActiveRemedies) -> Finding | None:
    if m.importance is None or not m.importance.windows_skipped:
        return None
    skipped, total = m.importance.windows_skipped, m.importance.windows_skipped + m.importance.windows_used
    description = f"{skipped} of {total} calibration windows yielded NaN or Inf and were left out."
    if active.dtype == "float32":
        text = "The run computed in float32 already: look at the model's weights and at the text of these windows."
        return Finding("skipped_windows", "medium", description, text)
    return Finding("skipped_windows", "medium", description, "In float16 or bfloat16, try --dtype float32.")


def unstable(m: Measured, active: ActiveRemedies) -> Finding | None:
    """Plans from two halves of the windows that share too little of what they remove."""
    stability = m.extras.stability
    if stability is None or stability.overlap is None or stability.overlap >= LOW_OVERLAP:
        return None
    chance = f" (by chance {percent(stability.chance)})" if stability.chance is not None else ""
    description = (
        f"Plans from two halves of the {stability.windows} calibration windows share {percent(stability.overlap)} of "
        f"what they remove{chance}, less than {percent(LOW_OVERLAP, 0)}: the plan depends on which windows were drawn."
    )
    remedy = Remedy(num_samples=2 * stability.windows)
    return Finding("unstable_plan", "medium", description, f"Try twice as many windows: {remedy.flags}.", remedy)


def nothing_removed(m: Measured, active: ActiveRemedies) -> Finding | None:
    """A budget below the smallest step: the model stays as it is, and no rate says anything about it."""
    plan = m.plan
    if plan.removed_params:
        return None
    whole = plan.architecture.total_params if plan.ratio_of == "total" else plan.architecture.prunable_params
    least = m.extras.smallest_step_params or int(plan.groups.cost.min())
    description = (
        f"Nothing is removed: --pruning_ratio {decimal_text(plan.requested_ratio)} of {plan.ratio_of} parameters is "
        f"{plan.budget_params:,}, and the smallest step takes {least:,}."
    )
    remedy = Remedy(pruning_ratio=ratio_for(least, whole), ratio_of=plan.ratio_of)
    return Finding("nothing_removed", "high", description, f"Ask for more: {remedy.flags} or above.", remedy)


def ratio_for(params: int, whole: int) -> float:
    """The smallest ratio of two significant digits whose budget, rounded down, covers ``params``: 0.00014."""
    digits = max(0, 1 - math.floor(math.log10(params / whole)))
    return -(-params * 10**digits // whole) / 10**digits


def decimal_text(ratio: float) -> str:
    """As a person types it: 0.00003, not 3e-05."""
    return format(Decimal(repr(ratio)), "f")


def budget_gap(m: Measured, active: ActiveRemedies) -> Finding | None:
    plan = m.plan
    if not plan.removed_params:
        return None  # nothing_removed says so
    if plan.budget_gap_params < BUDGET_GAP * plan.budget_params or not plan.budget_gap_params:
        return None
    description = (
        f"{plan.removed_params:,} of the {plan.budget_params:,} parameters of the budget were removed, "
        f"{plan.budget_gap_params:,} fewer: {plan.gap_reason}."
    )
    return Finding("budget_gap", "low", description, "Compare runs at the achieved ratio, not at the requested one.")


def single_kv_head(m: Measured, active: ActiveRemedies) -> Finding | None:
    single = [shape.has(ATTENTION) and shape.block(ATTENTION).width == 1 for shape in m.architecture.layers]
    layers = np.flatnonzero(single).tolist()
    if not layers:
        return None
    every = len(layers) == m.architecture.num_layers
    where = "every layer" if every else name_layers(layers)
    description = (
        f"A single KV head in {where}: attention cannot be narrowed there, so the MLP channels carry the budget."
    )
    return Finding("single_kv_head", "info", description, "Nothing to do.")


def removed_layers(m: Measured, active: ActiveRemedies) -> Finding | None:
    layers = m.plan.removed_layers
    if not layers:
        return None
    description = (
        f"{name_layers(layers).capitalize()} would have kept less than --epsilon, so "
        f"{'it was' if len(layers) == 1 else 'they were'} removed entirely, norms included."
    )
    return Finding("layers_removed_whole", "low", description, "A smaller --epsilon keeps such layers in the model.")
