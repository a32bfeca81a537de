"""``--allocate searched``: the budget by measured loss of blocks, within a time box.

Each level narrows every block, alone, to a share of what it may lose, and measures it on text that importance did not
see; levels go from coarse to fine. When time is up the level at hand is dropped, so blocks are always compared at the
same shares and the result depends on time only through the number of levels that were finished. From the curves comes
another ranking (``pruning.allocation``), from it a plan, taken only if it loses less than the plan it starts from.
"""

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from cli.job import Job
from cli.measured import ModelOnDemand
from cli.record import Stages
from cli.steps import Decision, plan_from
from cli.trials import HeldOut, against, in_words, lower, removes_as_much
from core.groups import KINDS
from core.plan import PruningPlan
from importance.block_losses import TimeUpError, measure_block_losses
from pruning.allocation import LEVELS, by_marginal_loss, groups_at
from pruning.limits import protected_last
from pruning.planning import keep_mask

FEWEST_LEVELS = 2  # one point a block is a straight line: no curve


def search_allocation(
    model: ModelOnDemand, job: Job, options: argparse.Namespace, decision: Decision, held_out: HeldOut, stages: Stages
) -> Decision:
    """The decision with the searched plan where it loses less, else ``decision``; both with the record of it."""
    if options.allocate != "searched" or job.plan is not None:
        return decision
    model()  # loaded under its own name
    with stages("allocate"):
        removed, losses = _curves(model, job, options, decision, held_out)
        loss = held_out.loss(decision.plan, "global plan")
        record: dict[str, Any] = {
            "taken": "global",
            "levels": list(LEVELS),
            "levels_complete": len(removed),
            "windows": held_out.describe(),
            "global": _tried(decision.plan, loss),
            "searched": None,
            "searched_minus_global": None,
            "curves": _points(job, removed, losses),
        }
        said = f"{len(removed)} of {len(LEVELS)} levels in --minutes {options.minutes:g}, too few to search with"
        if len(removed) >= FEWEST_LEVELS:
            assert decision.scores is not None
            order = by_marginal_loss(job.source.architecture, decision.scores.order, job.limits, removed, losses)
            found = replace(decision, scores=replace(decision.scores, order=order))
            assert found.scores is not None
            found = replace(found, plan=plan_from(job, options, found.scores))
            other = held_out.loss(found.plan, "searched plan")
            record |= {"searched": _tried(found.plan, other), "searched_minus_global": against(other, loss)}
            said = f"{len(removed)} of {len(LEVELS)} levels, {in_words(other, loss)} of the global ranking"
            if removes_as_much(found.plan, decision.plan) and lower(other, loss):
                decision, record["taken"] = found, "searched"
    print(f"allocation: {said}; taken: {record['taken']}", file=sys.stderr)
    return decision.noting(allocation=record)


def _curves(
    model: ModelOnDemand, job: Job, options: argparse.Namespace, decision: Decision, held_out: HeldOut
) -> tuple[np.ndarray, np.ndarray]:
    """Groups out of each block, int64 (n, 2L), and its loss, float64 (n, 2L), at the n levels that time allowed."""
    source, ends = job.source, time.monotonic() + 60 * options.minutes
    architecture = source.architecture
    assert decision.scores is not None
    order = protected_last(architecture, decision.scores.order, job.limits)
    removed, losses = [], []
    for number, share in enumerate(LEVELS, 1):
        gone = groups_at(architecture, job.limits, share)
        try:
            found = measure_block_losses(
                model(),
                source.family,
                architecture,
                held_out.windows,
                keep_mask(architecture.groups, order, gone),
                batch_size=options.batch_size,
                description=f"allocation {number} of {len(LEVELS)}",
                is_late=lambda: time.monotonic() > ends,
            )
        except TimeUpError:
            break
        removed.append(gone)
        losses.append(found.ravel())
    blocks = 2 * architecture.num_layers
    return np.array(removed, dtype=np.int64).reshape(-1, blocks), np.array(losses).reshape(-1, blocks)


def _tried(plan: PruningPlan, loss: np.ndarray) -> dict[str, Any]:
    return {"removed_params": plan.removed_params, "nll_nats_per_token": float(np.mean(loss))}


def _points(job: Job, removed: np.ndarray, losses: np.ndarray) -> list[dict[str, Any]]:
    """A row for each block that may lose something: groups removed and loss, ascending."""
    return [
        {
            "layer": block // 2,
            "kind": KINDS[block % 2],
            "groups_removed": removed[ascending, block].tolist(),
            "nats_per_token": losses[ascending, block].tolist(),
        }
        for block in range(2 * job.source.architecture.num_layers)
        for ascending in [np.argsort(removed[:, block], kind="stable")]
        if removed[:, block].any()
    ]
