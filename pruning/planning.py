"""From a ranking and a budget to a plan.

The ranking is walked upwards and every step is taken that its block may still lose and that fits into what is
left of the budget. A step of several groups (``round_to``, ``kv_round_to``) sits at the rank of its last one. Inside a
block steps never get cheaper, so a block gives up its lowest-ranked groups and no others, and when the walk
ends no legal step fits: the gap is smaller than the cheapest one left.

Layers that keep less than ``epsilon`` of their prunable parameters are then removed whole, worst first, as
long as the budget covers all their parameters; the rest of the budget is planned again from the start, until
nothing more falls under epsilon (at most L times). Frozen layers, layers with a protected group or a cap, and the last
layer left are never removed.
"""

from fractions import Fraction

import numpy as np

from core.groups import Architecture, GroupTable
from core.plan import PruningPlan
from pruning.budget import budget_params, largest_ratio, requested_params
from pruning.limits import (
    BlockSteps,
    Limits,
    block_steps,
    exact,
    frozen_groups,
    frozen_layers,
    guarded_layers,
    protected_last,
    removable_params,
)

__all__ = [
    "Limits",
    "budget_params",
    "frozen_groups",
    "frozen_layers",
    "largest_ratio",
    "plan_removal",
    "removable_params",
    "requested_params",
]


def plan_removal(
    architecture: Architecture, order: np.ndarray, *, ratio: float, ratio_of: str, limits: Limits
) -> PruningPlan:
    """The plan for a ranking. order: int64 (G,), a permutation of the groups, lowest first, ties settled.

    A ratio too small for the smallest step gives a plan that keeps everything, with its gap and reason. A
    ratio out of reach: BudgetError.
    """
    groups = architecture.groups
    check_order(groups, order)
    order = protected_last(architecture, order, limits)
    budget = budget_params(architecture, ratio, ratio_of, limits)
    steps = block_steps(architecture, limits)
    gone, removed = _fill(architecture, order, steps, budget, limits)
    spent = _params_of(architecture, gone) + int(np.sum(removed * steps.cost))
    return PruningPlan(
        architecture=architecture,
        keep=keep_mask(groups, order, removed) & ~gone[groups.layer],
        removed_layers=tuple(np.flatnonzero(gone).tolist()),
        requested_ratio=float(ratio),
        ratio_of=ratio_of,
        budget_params=budget,
        removed_params=spent,
        gap_reason=_gap_reason(groups, steps, removed, gone) if spent < budget else "",
    )


def _fill(
    architecture: Architecture, order: np.ndarray, steps: BlockSteps, budget: int, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """Layers removed whole, bool (L,), and the groups removed from each block of the others, int64 (B,)."""
    groups = architecture.groups
    rows, size = ranked_steps(groups, order, steps)
    block, gone = groups.block[rows], np.zeros(architecture.num_layers, dtype=bool)
    while True:
        here = ~gone[groups.layer[rows]]
        left = budget - _params_of(architecture, gone)
        taken = take(steps.cost[block[here]] * size[here], left)
        removed = np.zeros_like(steps.cost)
        np.add.at(removed, block[here][taken], size[here][taken])
        more = _under_epsilon(architecture, removed * steps.cost, left, limits)
        if not more:
            return gone, removed
        gone[more] = True


def check_order(groups: GroupTable, order: np.ndarray) -> None:
    if not np.array_equal(np.bincount(order, minlength=len(groups)), np.ones(len(groups))):
        raise ValueError("order is not a permutation of the groups")


def ranked_steps(groups: GroupTable, order: np.ndarray, steps: BlockSteps) -> tuple[np.ndarray, np.ndarray]:
    """All legal steps in the order of the walk: the row of each step's last group, and its size in groups."""
    place, first, step = groups.index, steps.first[groups.block], steps.step[groups.block]
    ends = (place + 1 == first) | ((place + 1 > first) & ((place + 1 - first) % step == 0))
    legal = ends & (place < steps.removable[groups.block])
    size = np.zeros(len(groups), dtype=np.int64)
    size[in_block_order(groups, order)[legal]] = np.where(place < first, first, step)[legal]
    rows = order[size[order] > 0]
    return rows, size[rows]


def take(cost: np.ndarray, budget: int) -> np.ndarray:
    """bool (n,): walking along cost, int64 (n,), what is taken when everything that still fits is.

    Equal to a loop over the items. All items up to the first that does not fit are taken at once, then those
    dearer than what is left are dropped for good; so it takes no more rounds than there are different costs.
    """
    taken = np.zeros(len(cost), dtype=bool)
    rest = np.flatnonzero(cost <= budget)
    while len(rest):
        total = np.cumsum(cost[rest])
        fit = int(np.searchsorted(total, budget, side="right"))
        taken[rest[:fit]] = True
        budget -= int(total[fit - 1])
        rest = rest[fit:]
        rest = rest[cost[rest] <= budget]
    return taken


def in_block_order(groups: GroupTable, order: np.ndarray) -> np.ndarray:
    """int64 (G,): the rows of each block in the order of their rank; blocks in the order of the table."""
    narrow = np.min_scalar_type(groups.num_blocks)  # numpy sorts narrow integers by radix, in one pass
    return np.asarray(order[np.argsort(groups.block[order].astype(narrow), kind="stable")])


def keep_mask(groups: GroupTable, order: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """bool (G,): everything but the ``removed`` lowest-ranked groups of each block, int64 (B,)."""
    keep = np.ones(len(groups), dtype=bool)
    keep[in_block_order(groups, order)[groups.index < removed[groups.block]]] = False
    return keep


def _under_epsilon(architecture: Architecture, removed_params: np.ndarray, budget: int, limits: Limits) -> list[int]:
    """Further layers to remove whole, lowest kept fraction first, then lower index, while the budget lasts.

    removed_params: int64 (B,), what the walk took from each block; nothing from frozen layers and from those gone
    already, which are no candidates therefore, nor are guarded ones. One layer always stays: a budget within reach
    cannot pay for all.
    """
    removed = architecture.groups.layer_sums(removed_params) * ~guarded_layers(architecture, limits)
    candidates = sorted(
        (1 - Fraction(int(removed[layer]), shape.prunable_params), layer)
        for layer, shape in enumerate(architecture.layers)
        if removed[layer]
    )
    chosen: list[int] = []
    for kept, layer in candidates:
        params = architecture.layers[layer].total_params
        if kept < exact(limits.epsilon) and params <= budget:
            chosen.append(layer)
            budget -= params
    return chosen


def _params_of(architecture: Architecture, gone: np.ndarray) -> int:
    """All parameters of the layers removed whole, norms included."""
    return sum(architecture.layers[layer].total_params for layer in np.flatnonzero(gone))


def _gap_reason(groups: GroupTable, steps: BlockSteps, removed: np.ndarray, gone: np.ndarray) -> str:
    """What stopped the walk: the budget was within reach, so a step is left, dearer than the gap."""
    size = np.where(gone[groups.block_layer], 0, steps.next_step(removed))
    params = np.where(size > 0, size * steps.cost, np.iinfo(np.int64).max)
    block = int(np.argmin(params))
    step = groups.kind_of(block).counted(int(size[block]))
    return f"smaller than the smallest step left ({step} of {params[block]} parameters)"
