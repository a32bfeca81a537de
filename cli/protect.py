"""``--protect``: what a plan must leave alone, by two measurements.

Outlier channels are found before anything is ranked; under ``outliers`` they are limits like any other. ``measured``
looks at a finished plan: every block alone on text that importance did not see (``importance.block_losses``), against
what its scores promised (``diagnostics.plan_check``). Flagged blocks may lose half of what was planned, the budget goes
elsewhere, and the new plan is kept only if all of it together does not lose to the one before.
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from cli.cache import KeptMeasurements
from cli.job import Job
from cli.measured import ModelOnDemand, outliers_of
from cli.record import Stages
from cli.steps import Decision, plan_from
from cli.trials import HeldOut, against, in_words, not_worse, removes_as_much
from core.errors import BudgetError
from core.plan import PruningPlan
from core.windows import TokenWindows
from diagnostics.plan_check import FLAG_FACTOR, FLAG_SHARE, PlanCheck, check_of, halved_caps
from diagnostics.wording import name_blocks
from importance.block_losses import measure_block_losses
from importance.scoring import Scores

REPEATS = 3


def look_for_outliers(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows | None,
    kept: KeptMeasurements,
    stages: Stages,
) -> Job:
    """The job with the model's outlier channels, and under ``outliers`` with limits that protect them."""
    if options.protect == "none" or job.plan is not None:
        return job
    assert calibration is not None  # Job.needs_text
    found = outliers_of(model, job, options, calibration, kept, stages)
    if options.protect == "outliers":
        job = replace(job, limits=replace(job.limits, protected=tuple(found.rows.tolist())))
    return replace(job, outliers=found)


def check_the_plan(
    model: ModelOnDemand, job: Job, options: argparse.Namespace, decision: Decision, held_out: HeldOut, stages: Stages
) -> Decision:
    """Under ``measured``: the decision with its check, and with caps on flagged blocks where that loses no more."""
    if options.protect != "measured" or job.plan is not None:
        return decision
    model()  # loaded under its own name
    with stages("check the plan"):
        best, check = decision, _checked(model, job, options, decision, held_out, 1)
        tried = [_trial(decision.plan, check, held_out, None)]
        caps: tuple[int, ...] = ()
        reason = "No block loses far more than its scores promised."
        for repeat in range(1, REPEATS + 1):
            if not len(check.flagged):
                break
            caps = halved_caps(check, _widths(job), caps)
            try:
                plan = plan_from(replace(job, limits=replace(job.limits, caps=caps)), options, _scores(decision))
            except BudgetError as error:
                reason = f"The budget cannot be spent elsewhere: {error}"
                break
            if not removes_as_much(plan, decision.plan):
                spared = decision.plan.removed_params - plan.removed_params
                reason = f"The budget cannot be spent elsewhere: {spared} parameters would be left over."
                break
            loss, before = held_out.loss(plan, "plan"), held_out.loss(best.plan, "plan")
            stays = f"{name_blocks(check.flagged)} capped: {in_words(loss, before)}"
            print(f"plan check: {stays}", file=sys.stderr)
            if not not_worse(loss, before):
                tried.append(_trial(plan, None, held_out, best.plan))
                reason = f"Capping {name_blocks(check.flagged)} loses more, so the plan before it stays."
                break
            best, last = replace(best, plan=plan), best.plan
            check = _checked(model, job, options, best, held_out, repeat + 1)
            tried.append(_trial(plan, check, held_out, last))
            reason = "All blocks lose about what was promised now."
            if len(check.flagged):
                reason = f"{name_blocks(check.flagged)} still lose more than promised after {repeat} rounds of caps."
        taken = [trial for trial in tried if trial["blocks"] is not None][-1]
        record = {
            "reason": reason,
            "repeats_at_most": REPEATS,
            "flag_factor": FLAG_FACTOR,
            "flag_share": FLAG_SHARE,
            "windows": held_out.describe(),
            "tried": [trial | {"taken": trial is taken} for trial in tried],
        }
    print(f"plan check: {reason}", file=sys.stderr)
    return replace(best, check=check).noting(plan_check=record)


def _checked(
    model: ModelOnDemand, job: Job, options: argparse.Namespace, decision: Decision, held_out: HeldOut, number: int
) -> PlanCheck:
    source, plan = job.source, decision.plan
    assert decision.importance is not None
    measured = measure_block_losses(
        model(),
        source.family,
        source.architecture,
        held_out.windows,
        plan.keep,
        batch_size=options.batch_size,
        description=f"plan check {number}",
    )
    return check_of(plan, decision.importance.values, measured)


def _trial(plan: PruningPlan, check: PlanCheck | None, held_out: HeldOut, before: PruningPlan | None) -> dict[str, Any]:
    """One plan for the record; blocks is None where the plan was dropped before they were measured again."""
    loss = held_out.loss(plan, "plan")
    return {
        "nll_nats_per_token": float(np.mean(loss)),
        "minus_before": None if before is None else against(loss, held_out.loss(before, "plan")),
        "removed_params": plan.removed_params,
        "nats_per_token_a_unit_of_importance": check.kappa if check else None,
        "num_flagged": len(check.flagged) if check else None,
        "blocks": check.to_json() if check else None,
    }


def _widths(job: Job) -> np.ndarray:
    """int64 (2L,): groups of each block."""
    return np.array([shape.widths for shape in job.source.architecture.layers], dtype=np.int64).ravel()


def _scores(decision: Decision) -> Scores:
    assert decision.scores is not None
    return decision.scores
