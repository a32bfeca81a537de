"""Whether the plan depends on which windows were drawn: one plan from each half of them, at the same budget."""

from dataclasses import replace

import numpy as np

from core.criteria import CRITERIA
from core.errors import PruningError
from core.measured import Importance, Stability
from core.plan import PruningPlan
from diagnostics.comparison.shared import shared_removals
from diagnostics.run_folder import Block
from run.decision import Ranked, rank


def stability_of(decision: Ranked) -> Stability:
    """What the two plans share of what they remove; numpy only."""
    importance = decision.first_importance
    windows = importance.windows_used
    if importance.halves is None:
        return Stability(None, None, windows, _why_without_halves(importance))
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


def _why_without_halves(importance: Importance) -> str:
    if importance.windows_used == 1:
        return "the halves need a window each"
    return CRITERIA[importance.criterion].why_no_halves


def _blocks(plan: PruningPlan) -> list[list[Block]]:
    return [
        [Block(b.width, b.cost, np.asarray(plan.keep[plan.groups.rows(layer, b.kind)]), b.kind) for b in shape.blocks]
        for layer, shape in enumerate(plan.architecture.layers)
    ]
