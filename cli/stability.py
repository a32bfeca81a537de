"""Whether the plan depends on which windows were drawn: one plan from each half of them, at the same budget."""

import argparse
from dataclasses import replace

import numpy as np

from cli.job import Job
from cli.steps import Decision, plan_with
from core.errors import PruningError
from core.groups import KINDS
from core.measures import Stability
from core.plan import PruningPlan
from diagnostics.comparison.overlap import shared_removals
from diagnostics.run_folder import Block

WITHOUT_HALVES = {
    "magnitude": "magnitude reads no text: it is the same for any windows",
    "obs": "obs would have to run its elimination three times",
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
        reason = "the halves need a window each"
        if importance.criterion in WITHOUT_HALVES:
            reason = WITHOUT_HALVES[importance.criterion]
        elif options.gradient_reduction == "sum":
            reason = "a sum of gradients does not come as a sum over windows"
        return Stability(None, None, windows, reason)
    try:
        halves = [
            plan_with(job, options, replace(importance, values=values), decision.prior).plan
            for values in importance.halves
        ]
    except PruningError as error:
        return Stability(None, None, windows, str(error))
    overlap, chance = shared_removals(_blocks(halves[0]), _blocks(halves[1]))
    return Stability(overlap, chance, windows, None if overlap is not None else "neither half removes anything")


def _blocks(plan: PruningPlan) -> list[list[Block]]:
    return [
        [
            Block(shape.widths[kind], shape.group_params[kind], np.asarray(plan.keep[plan.groups.rows(layer, kind)]))
            for kind in range(len(KINDS))
        ]
        for layer, shape in enumerate(plan.architecture.layers)
    ]
