"""Whether the plan depends on which windows were drawn: one plan from each half of them, at the same budget."""

from dataclasses import replace

import numpy as np

from core.criteria import CRITERIA
from core.errors import PruningError
from core.groups import KINDS
from core.measures import Importance, Stability
from core.plan import PruningPlan
from diagnostics.comparison.overlap import shared_removals
from diagnostics.run_folder import Block
from run.decision import Ranked, rank


def stability_of(decision: Ranked, gradient_reduction: str) -> Stability:
    """What the two plans share of what they remove; numpy only. gradient_reduction: explains missing halves."""
    importance = decision.first_importance
    windows = importance.windows_used
    if importance.halves is None:
        return Stability(None, None, windows, _why_without_halves(importance, gradient_reduction))
    try:
        halves = [_plan_from(decision, values) for values in importance.halves]
    except PruningError as error:
        return Stability(None, None, windows, str(error))
    overlap, chance = shared_removals(_blocks(halves[0]), _blocks(halves[1]))
    return Stability(overlap, chance, windows, None if overlap is not None else "neither half removes anything")


def _plan_from(decision: Ranked, values: np.ndarray) -> PruningPlan:
    return rank(
        decision.architecture,
        replace(decision.first_importance, values=values),
        decision.prior,
        transforms=decision.transforms,
        limits=decision.limits,
        budget=decision.budget,
    ).plan


def _why_without_halves(importance: Importance, gradient_reduction: str) -> str:
    if importance.windows_used == 1:
        return "each half needs a window"
    reason = CRITERIA[importance.criterion].without_halves
    if reason is not None:
        return reason
    assert gradient_reduction == "sum"
    return "a sum of gradients cannot be divided into halves afterwards"


def _blocks(plan: PruningPlan) -> list[list[Block]]:
    return [
        [
            Block(shape.widths[kind], shape.group_params[kind], np.asarray(plan.keep[plan.groups.rows(layer, kind)]))
            for kind in range(len(KINDS))
        ]
        for layer, shape in enumerate(plan.architecture.layers)
    ]
