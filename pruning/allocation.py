"""The budget by measured loss: how much each block gives up, from curves of its loss against what it loses.

A curve of block b holds points (p, Δ): p parameters removed, the lowest-ranked groups first, cost Δ nats/token with b
alone narrowed; (0, 0) is one of them. Its lower convex hull is what the block would cost if steps could be mixed; it
drops points of noise, where removing more seemed to cost less. The slope of the hull at a group's place, nats/token a
parameter, is the marginal loss of removing the block down to that group. It never falls inside a block, so ranking all
groups by it and walking up spends the budget by least marginal loss: exact for convex curves that add up, to within one
step. Inside a segment, and between equal slopes, groups keep their order by score.
"""

import numpy as np

from core.groups import Architecture
from pruning.limits import Limits, block_steps, protected_last
from pruning.planning import in_block_order

# Shares of what a block may lose, coarse to fine, in the order in which they are measured.
LEVELS = (1.0, 0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875)


def groups_at(architecture: Architecture, limits: Limits, share: float) -> np.ndarray:
    """int64 (B,): whole steps of each block that are nearest below ``share`` of what it may lose."""
    steps = block_steps(architecture, limits)
    wanted = np.floor(share * steps.removable + 1e-9).astype(np.int64)
    whole = steps.first + (wanted - steps.first) // steps.step * steps.step
    return np.where(wanted < steps.first, 0, whole)


def lower_hull(params: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the lower convex hull of points with ascending, distinct ``params``; both float64 (n,)."""
    corners: list[tuple[float, float]] = []
    for point in zip(params.tolist(), losses.tolist(), strict=True):
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], point):
            corners.pop()
        corners.append(point)
    hull = np.array(corners)
    return hull[:, 0], hull[:, 1]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def by_marginal_loss(
    architecture: Architecture, order: np.ndarray, limits: Limits, removed: np.ndarray, losses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ranking by slope, int64 (G,), for ``plan_removal``, and the slope of each group, float64 (G,), nats/token a
    parameter: what is ranked. Groups that no curve reaches rank last; their slope is the largest there is.

    order: the ranking by score. removed: int64 (n, B), groups out of each block at the n points that were measured.
    losses: float64 (n, B), nats/token.
    """
    groups, cost = architecture.groups, block_steps(architecture, limits).cost
    order = protected_last(architecture, order, limits)
    slope = np.full(len(groups), np.inf)
    rows = in_block_order(groups, order)
    for block in range(groups.num_blocks):
        counts, first = np.unique(np.append(0, removed[:, block]), return_index=True)
        found = np.append(0.0, losses[:, block])[first]
        if len(counts) < 2:
            continue
        at, height = lower_hull(counts * float(cost[block]), found)
        mine = rows[groups.rows_of(block)][: counts[-1]]
        end = np.arange(1, len(mine) + 1) * float(cost[block])
        segment = np.searchsorted(at, end, side="left")  # the corner at which the group's segment ends
        slope[mine] = (np.diff(height) / np.diff(at))[segment - 1]
    place = np.empty(len(groups), dtype=np.int64)
    place[order] = np.arange(len(groups))
    ranking = np.lexsort((place, slope)).astype(np.int64, copy=False)
    reached = np.isfinite(slope)
    return ranking, np.where(reached, slope, slope[reached].max(initial=0.0))
