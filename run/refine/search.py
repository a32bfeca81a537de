"""``--allocate searched`` (experimental): the budget by measured loss of blocks, within a time box.

Each level narrows every block, alone, to a share of what it may lose, and measures it on text that importance did not
see; levels go from coarse to fine. When time is up the level at hand is dropped, so blocks are always compared at the
same shares and the result depends on time only through the number of levels that were finished. From the curves comes
another ranking (``pruning.allocation``), from it a plan, taken only if it loses less than the plan it starts from.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from importance.block_losses import measure_block_losses
from importance.over_windows import TimeUpError
from pruning.allocation import LEVELS, by_marginal_loss, groups_at
from pruning.limits import protected_last
from pruning.planning import keep_mask
from run.decision import Ranked
from run.refine.driver import Contest, Refined, tried
from run.session import Session
from run.settings import Settings

FEWEST_LEVELS = 2  # one point a block is a straight line: no curve


class Search:
    record, stage = "allocation", "allocate"

    def wanted(self, settings: Settings) -> bool:
        return settings.refinement.allocate == "searched"

    def refine(self, session: Session, decision: Ranked) -> Refined:
        removed, losses = _curves(session, decision)
        minutes, judge = session.settings.refinement.minutes, session.judge
        record: dict[str, Any] = {
            "taken": "global",
            "levels": list(LEVELS),
            "levels_complete": len(removed),
            "windows": judge.describe(),
            "global": tried(judge, decision.plan, "global plan"),
            "searched": None,
            "searched_minus_global": None,
            "curves": _points(decision, removed, losses),
        }
        finished = f"allocation: {len(removed)} of {len(LEVELS)} levels"
        if len(removed) < FEWEST_LEVELS:
            said = f"{finished} in --minutes {minutes:g}, too few to search; taken: global"
            return Refined(decision, record, said)
        searched = _ranked_by_loss(decision, removed, losses)
        contest = Contest(judge, searched.plan, decision.plan, ("searched", "global"))
        record |= {
            "taken": contest.taken,
            "searched": tried(judge, searched.plan, "searched plan"),
            "searched_minus_global": contest.difference,
        }
        said = f"{finished}, {contest.text} of the global ranking; taken: {contest.taken}"
        return Refined(searched if contest.wins else decision, record, said)


def _ranked_by_loss(decision: Ranked, removed: np.ndarray, losses: np.ndarray) -> Ranked:
    """The decision with the ranking by marginal loss; what is ranked is what the reports call the score."""
    order, slope = by_marginal_loss(decision.architecture, decision.scores.order, decision.limits, removed, losses)
    return decision.replanned(scores=replace(decision.scores, order=order, score=slope))


def _curves(session: Session, decision: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Groups out of each block, int64 (n, blocks), and its loss, float64 (n, blocks), at the n levels that time
    allowed."""
    ends = time.monotonic() + 60 * session.settings.refinement.minutes
    architecture = decision.architecture
    order = protected_last(architecture, decision.scores.order, decision.limits)
    removed, losses = [], []
    for number, share in enumerate(LEVELS, 1):
        gone = groups_at(architecture, decision.limits, share)
        try:
            measured = measure_block_losses(
                session.dense(),
                session.family,
                architecture,
                session.judging,
                keep_mask(architecture.groups, order, gone),
                batch_size=session.batch_size,
                description=f"allocation {number} of {len(LEVELS)}",
                is_late=lambda: time.monotonic() > ends,
            )
        except TimeUpError:
            break
        removed.append(gone)
        losses.append(architecture.groups.gathered(measured))
    blocks = architecture.block_table.num_blocks
    return np.array(removed, dtype=np.int64).reshape(-1, blocks), np.array(losses).reshape(-1, blocks)


def _points(decision: Ranked, removed: np.ndarray, losses: np.ndarray) -> list[dict[str, Any]]:
    """A row for each block that may lose something: groups removed and loss, ascending."""
    blocks = decision.architecture.block_table
    return [
        {
            "layer": int(blocks.block_layer[block]),
            "kind": blocks.kind_of(block).name,
            "groups_removed": removed[ascending, block].tolist(),
            "nats_per_token": losses[ascending, block].tolist(),
        }
        for block in range(blocks.num_blocks)
        for ascending in [np.argsort(removed[:, block], kind="stable")]
        if removed[:, block].any()
    ]
