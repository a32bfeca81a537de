"""Whether the plan depends on which windows were drawn: one plan from each half of them, at the same budget."""

import argparse
from dataclasses import replace

import numpy as np

from cli.job import Job
from cli.steps import Decision, plan_with
from core.errors import PruningError
from core.groups import KINDS
from core.measures import Importance, Stability
from core.plan import PruningPlan
from diagnostics.comparison.overlap import shared_removals
from diagnostics.run_folder import Block

WITHOUT_HALVES = {
    "magnitude": "magnitude reads no text: it is the same for any windows",
    "obs": "the memory for obs's moments does not hold both halves of all layers in one pass",
}


def with_stability(job: Job, options: argparse.Namespace, decision: Decision) -> Decision:
    """The decision with what plans from its importance's halves share; numpy only. A replayed one stays as it is."""
    if job.plan is not None or decision.importance is None:
        return decision
    return replace(decision, stability=stability_of(job, options, decision))


def stability_of(job: Job, options: argparse.Namespace, decision: Decision) -> Stability:
    importance = decision.importance
    assert importance is not None
    windows = importance.windows_used
    if importance.halves is None:
        return Stability(None, None, windows, _why_without_halves(importance, options.gradient_reduction))
    try:
        halves = [
            plan_with(job, options, replace(importance, values=values), decision.prior).plan
            for values in importance.halves
        ]
    except PruningError as error:
        return Stability(None, None, windows, str(error))
    overlap, chance = shared_removals(_blocks(halves[0]), _blocks(halves[1]))
    return Stability(overlap, chance, windows, None if overlap is not None else "neither half removes anything")


def _why_without_halves(importance: Importance, gradient_reduction: str) -> str:
    if importance.windows_used == 1:
        return "the halves need a window each"
    if importance.criterion in WITHOUT_HALVES:
        return WITHOUT_HALVES[importance.criterion]
    assert gradient_reduction == "sum"
    return "a sum of gradients does not come as a sum over windows"


def _blocks(plan: PruningPlan) -> list[list[Block]]:
    return [
        [
            Block(shape.widths[kind], shape.group_params[kind], np.asarray(plan.keep[plan.groups.rows(layer, kind)]))
            for kind in range(len(KINDS))
        ]
        for layer, shape in enumerate(plan.architecture.layers)
    ]
