"""One pair of widths for all layers: the plan that the model family's own class can load.

Every layer keeps the same number k of KV groups and the same number f of MLP channels; in each block the
lowest-ranked groups go. Of all pairs (k, f) those are looked at that spend the budget: neither one step fewer KV
groups nor one step fewer channels, in all layers at once, would still fit. Among them the pair wins that loses
least score,

    lost(k, f) = Σ_g score_g · c_g   over the removed groups g, c_g their parameters,

because a score stands for importance per parameter; without transforms the sum is the importance removed. Scores
below 0 (``zscore``) are first shifted by −min over the groups that may go, so that removing more never loses less.
A tie goes to the pair that removes more parameters, then to the one that keeps more KV groups. Kinds of block besides
these two are treated alike: one more width, equal in all layers that have such a block.
"""

import math
from dataclasses import replace

import numpy as np

from core.groups import Architecture, GroupTable
from core.kinds import TABLE
from core.plan import PruningPlan
from pruning.budget import budget_params
from pruning.limits import Limits, frozen_groups, protected_last, uniform_widths
from pruning.planning import check_order, in_block_order, keep_mask

OUT_OF_REACH = np.iinfo(np.int64).max


def plan_uniform(
    architecture: Architecture,
    scores: np.ndarray,
    order: np.ndarray,
    *,
    ratio: float,
    ratio_of: str,
    limits: Limits,
) -> PruningPlan:
    """The best uniform plan. scores: float64 (G,), what was ranked. order: int64 (G,), lowest first, ties settled.

    A ratio too small for one step in all layers gives a plan that keeps everything, with its gap and reason. A
    ratio out of reach: BudgetError. Frozen layers or epsilon: UsageError.
    """
    groups, limits = architecture.groups, replace(limits, uniform=True)
    check_order(groups, order)
    order = protected_last(architecture, order, limits)
    budget = budget_params(architecture, ratio, ratio_of, limits)
    paths = [uniform_widths(architecture, limits, kind) for kind in architecture.kinds]
    may_go = ~frozen_groups(architecture, limits)
    worth = (scores - min(0.0, scores[may_go].min(initial=0.0))) * groups.cost
    ranked = worth[in_block_order(groups, order)]
    lost = [_lost(groups, ranked, kind, path[0]) for kind, path in zip(architecture.kinds, paths, strict=True)]
    chosen = best_widths([params for _, params in paths], lost, budget)
    kept = {kind: path[0][at] for kind, path, at in zip(architecture.kinds, paths, chosen, strict=True)}
    spent = sum(int(params[at]) for (_, params), at in zip(paths, chosen, strict=True))
    removed = groups.widths - np.array([kept[kind] for kind in groups.block_kind], dtype=np.int64)
    return PruningPlan(
        architecture=architecture,
        keep=keep_mask(groups, order, removed),
        removed_layers=(),
        requested_ratio=float(ratio),
        ratio_of=ratio_of,
        budget_params=budget,
        removed_params=spent,
        gap_reason=_gap_reason(architecture.kinds, paths, chosen) if spent < budget else "",
    )


def best_widths(params: list[np.ndarray], lost: list[np.ndarray], budget: int) -> tuple[int, ...]:
    """Positions of the winning widths. Of each kind, widest first: parameters removed, int64 (n,), score lost, (n,)."""
    places, gap = _spending(params, budget)
    losses = sum((values[i] for values, i in zip(lost, places, strict=True)), np.zeros(len(gap)))
    winner = np.lexsort((*places[::-1], gap, losses))[0]
    return tuple(places[:, winner].tolist())


def _spending(params: list[np.ndarray], budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions, int64 (kinds, n), of all choices of widths that spend the budget, and what they leave of it, (n,).

    For each choice of widths of all kinds but the last, the one with the most groups of the last kind out is the only
    one that can spend the budget, and does unless one more step of another kind still fits beside it. A step that fits
    removes more, so the choice that removes most leaves none, and there is at least one.
    """
    *others, last = params
    sizes = [len(path) for path in others]
    at = np.indices(sizes).reshape(len(others), math.prod(sizes))
    removed = sum((path[i] for path, i in zip(others, at, strict=True)), np.zeros(at.shape[1], dtype=np.int64))
    most = np.searchsorted(last, budget - removed, side="right") - 1
    gap, spends = budget - removed - last[np.maximum(most, 0)], most >= 0
    for path, i in zip(others, at, strict=True):
        spends &= np.append(np.diff(path), OUT_OF_REACH)[i] > gap
    return np.vstack([at, most])[:, spends], gap[spends]


def _lost(groups: GroupTable, worth: np.ndarray, kind: int, widths: np.ndarray) -> np.ndarray:
    """float64 (n,): worth removed in all layers at each width. worth: (G,), block by block, lowest-ranked first."""
    total = np.zeros(len(widths))
    for block in groups.blocks_of_kind(kind):
        removed = np.concatenate([[0.0], np.cumsum(worth[groups.rows_of(block)])])
        total += removed[groups.widths[block] - widths]
    return total


def _gap_reason(kinds: tuple[int, ...], paths: list[tuple[np.ndarray, np.ndarray]], chosen: tuple[int, ...]) -> str:
    """What stopped at these widths: a step in all layers is left, dearer than the gap."""
    steps = []
    for kind, (widths, params), at in zip(kinds, paths, chosen, strict=True):
        if at + 1 < len(widths):
            steps.append((int(params[at + 1] - params[at]), TABLE[kind].counted(int(widths[at] - widths[at + 1]))))
    params_needed, noun = min(steps)
    return f"smaller than the smallest step left ({noun} in every layer, {params_needed} parameters)"
