"""``--rounds N``: prune in N steps, importance measured again after each, against pruning in one.

In round k the plan for k/N of the ratio is made from importance that was measured on the model without the groups that
went before; those rank lowest and stay gone. The last plan and the one-shot plan spend the same budget; the one that
loses less on text that importance did not see is taken, and of equals the one-shot plan.
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from cli.job import Job
from cli.measured import ModelOnDemand, measured_importance
from cli.record import Stages
from cli.steps import Decision, plan_from
from cli.trials import HeldOut, against, in_words, lower, removes_as_much
from core.measures import Importance
from core.plan import PruningPlan
from core.windows import TokenWindows
from importance.scoring import Scores, score_groups
from models.architecture import decoder_layers
from models.reference import without_removed_groups


def in_rounds(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows | None,
    decision: Decision,
    held_out: HeldOut,
    stages: Stages,
) -> Decision:
    """The decision made in rounds where it is the better one, else ``decision``; both with the record of it."""
    if options.rounds == 1 or options.importance_method == "magnitude" or job.plan is not None:
        return decision
    dense = model()
    with stages("rounds"):
        best, steps = decision, []
        for number in range(1, options.rounds + 1):
            if number > 1:
                best = _again(dense, job, options, calibration, best)
            last = number == options.rounds
            ratio = options.pruning_ratio if last else options.pruning_ratio * number / options.rounds
            assert best.scores is not None
            best = replace(best, plan=plan_from(job, options, best.scores, ratio))
            steps.append(_step(number, ratio, best.plan, held_out))
        loss, shot = held_out.loss(best.plan, "rounds"), held_out.loss(decision.plan, "one shot")
        wins = removes_as_much(best.plan, decision.plan) and lower(loss, shot)
        record = {
            "taken": "rounds" if wins else "one shot",
            "rounds": options.rounds,
            "windows": held_out.describe(),
            "steps": steps,
            "one_shot": {"removed_params": decision.plan.removed_params, "nll_nats_per_token": float(np.mean(shot))},
            "rounds_minus_one_shot": against(loss, shot),
        }
    print(f"rounds: {in_words(loss, shot)} in one; taken: {record['taken']}", file=sys.stderr)
    return (best if wins else decision).noting(rounds=record)


def _again(
    model: Any, job: Job, options: argparse.Namespace, calibration: TokenWindows | None, before: Decision
) -> Decision:
    """Importance and scores without the groups that ``before`` removes; its plan is not yet the next one.

    Those groups keep the importance of the round that removed them, influence no statistic, and rank first.
    """
    source, gone = job.source, ~before.plan.keep
    assert before.importance is not None
    assert before.scores is not None
    if (gone | job.frozen).all():
        return before
    with without_removed_groups(decoder_layers(model, source.family), source.family, before.plan):
        found = measured_importance(model, job, options, calibration)
    values = np.where(gone, before.importance.values, found.values)
    scores = score_groups(
        source.architecture.groups, values, job.transforms, frozen=job.frozen | gone, prior=before.prior
    )
    importance = replace(found, values=values, gradients=before.importance.gradients)
    return replace(before, importance=_counted(importance, before.importance), scores=_ranked(scores, before, gone))


def _ranked(scores: Scores, before: Decision, gone: np.ndarray) -> Scores:
    assert before.scores is not None
    first = before.scores.order[gone[before.scores.order]]
    order = np.concatenate([first, scores.order[~gone[scores.order]]])
    return replace(scores, score=np.where(gone, before.scores.score, scores.score), order=order)


def _counted(importance: Importance, before: Importance) -> Importance:
    """The most windows that any round left out are those the report tells of."""
    skipped = max(importance.windows_skipped, before.windows_skipped)
    return replace(importance, windows_skipped=skipped)


def _step(number: int, ratio: float, plan: PruningPlan, held_out: HeldOut) -> dict[str, Any]:
    return {
        "round": number,
        "pruning_ratio": ratio,
        "removed_params": plan.removed_params,
        "nll_nats_per_token": float(np.mean(held_out.loss(plan, f"round {number}"))),
    }
