"""One pair of widths for all layers: the plan that the model family's own class can load.

Every layer keeps the same number k of KV groups and the same number f of MLP channels; in each block the
lowest-ranked groups go. Of all pairs (k, f) those are looked at that spend the budget: neither one step fewer KV
groups nor one step fewer channels, in all layers at once, would still fit. Among them the pair wins that loses
least score,

    lost(k, f) = Σ_g score_g · c_g   over the removed groups g, c_g their parameters,

because a score stands for importance per parameter; without transforms the sum is the importance removed. Scores
below 0 (``zscore``) are first shifted by −min over the groups that may go, so that removing more never loses less.
A tie goes to the pair that removes more parameters, then to the one that keeps more KV groups.
"""

from dataclasses import replace

import numpy as np

from core.groups import ATTENTION, KINDS, MLP, Architecture
from core.plan import PruningPlan
from pruning.budget import budget_params
from pruning.limits import Limits, frozen_groups, protected_last, uniform_widths
from pruning.planning import by_block, check_order, keep_mask, wording

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
    paths = [uniform_widths(architecture, limits, kind) for kind in (ATTENTION, MLP)]
    may_go = ~frozen_groups(architecture, limits)
    worth = (scores - min(0.0, scores[may_go].min(initial=0.0))) * groups.cost
    ranked = by_block(groups, order)
    lost = [_lost(architecture, worth[ranked], kind, paths[kind][0]) for kind in (ATTENTION, MLP)]
    kv, channels = best_pair(paths[ATTENTION][1], paths[MLP][1], lost[ATTENTION], lost[MLP], budget)
    kept = [paths[ATTENTION][0][kv], paths[MLP][0][channels]]
    spent = int(paths[ATTENTION][1][kv] + paths[MLP][1][channels])
    widths = np.array([shape.widths for shape in architecture.layers], dtype=np.int64).ravel()
    return PruningPlan(
        architecture=architecture,
        keep=keep_mask(groups, order, widths - np.tile(kept, architecture.num_layers)),
        removed_layers=(),
        requested_ratio=float(ratio),
        ratio_of=ratio_of,
        budget_params=budget,
        removed_params=spent,
        gap_reason=_gap_reason(paths, (kv, channels)) if spent < budget else "",
    )


def best_pair(
    kv_params: np.ndarray, mlp_params: np.ndarray, kv_lost: np.ndarray, mlp_lost: np.ndarray, budget: int
) -> tuple[int, int]:
    """Positions of the winning widths. Of each kind, widest first: parameters removed, int64 (n,), score lost, (n,).

    For each k the pair with the most channels out is the only one that can spend the budget, and does unless one
    step fewer KV groups still fits beside it. The narrowest k that fits at all always does, so there is a winner.
    """
    channels = np.searchsorted(mlp_params, budget - kv_params, side="right") - 1
    fits = channels >= 0
    channels = np.where(fits, channels, 0)
    left = budget - mlp_params[channels]
    spends = fits & (np.append(kv_params[1:], OUT_OF_REACH) > left)
    kv = np.flatnonzero(spends)
    lost, gap = kv_lost[kv] + mlp_lost[channels[kv]], left[kv] - kv_params[kv]
    winner = kv[np.lexsort((kv, gap, lost))[0]]
    return int(winner), int(channels[winner])


def _lost(architecture: Architecture, worth: np.ndarray, kind: int, widths: np.ndarray) -> np.ndarray:
    """float64 (n,): worth removed in all layers at each width. worth: (G,), block by block, lowest-ranked first."""
    total = np.zeros(len(widths))
    for layer, shape in enumerate(architecture.layers):
        removed = np.concatenate([[0.0], np.cumsum(worth[architecture.groups.rows(layer, kind)])])
        total += removed[shape.widths[kind] - widths]
    return total


def _gap_reason(paths: list[tuple[np.ndarray, np.ndarray]], chosen: tuple[int, int]) -> str:
    """What stopped at this pair: a step in all layers is left, dearer than the gap."""
    steps = []
    for kind in range(len(KINDS)):
        (widths, params), at = paths[kind], chosen[kind]
        if at + 1 < len(widths):
            steps.append((int(params[at + 1] - params[at]), wording(int(widths[at] - widths[at + 1]), kind)))
    params_needed, noun = min(steps)
    return f"smaller than the smallest step left ({noun} in every layer, {params_needed} parameters)"
