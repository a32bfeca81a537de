"""From importance to score: per parameter → clip → normalise → correct → rank, whatever is switched on.

For a group g with importance I_g and cost c_g, s_g = I_g / c_g; everything acts on s, because importances of
kinds whose costs differ 400-fold share no percentile and no layer mean. Statistics are cost-weighted and run
over the groups that may be removed; frozen groups get a score by the same formulas and influence no other.

Ranking is ascending. Ties rank by the unclipped s, then layer, kind, index, so clipping and normalisation
never change the order inside a layer. A layer whose removable groups are all zero ranks before everything
else, by a key of its own: no normalisation can say how one zero compares with another. Its recorded score is
0, or the lowest score of the other layers where that is negative.
"""

from dataclasses import dataclass

import numpy as np

from core.errors import NumericalError
from core.groups import GroupTable
from core.kinds import TABLE
from core.measured import Prior
from core.transforms import Transforms
from core.weighted import percentiles
from importance.correction import correct
from importance.normalise import normalise


@dataclass(frozen=True)
class Scores:
    """What the planner ranks, and what reports say about it. G groups, L layers.

    per_parameter: float64 (G,), s = I / c, unclipped. score: float64 (G,), what is ranked.
    order: int64 (G,), permutation of the rows, lowest first, all tie rules applied.
    clipped_share: float64 (L,), share of each layer's removable cost that clipping changed; None without it.
    all_zero_layers: layers that have removable groups, all of importance 0.
    factor: float64 (L, kinds), B^T. tau_used: τ in the prior's unit. uses_layer_prior: bool (L,), the layers
    whose Δ is below it. These three are None when T = 0.
    notes: sentences for the report.
    """

    per_parameter: np.ndarray
    score: np.ndarray
    order: np.ndarray
    clipped_share: np.ndarray | None
    all_zero_layers: tuple[int, ...]
    factor: np.ndarray | None
    tau_used: float | None
    uses_layer_prior: np.ndarray | None
    notes: list[str]


def score_groups(
    groups: GroupTable,
    importance: np.ndarray,
    transforms: Transforms,
    *,
    frozen: np.ndarray,
    prior: Prior | None,
) -> Scores:
    """Scores and their ranking. importance: float64 (G,). frozen: bool (G,), True = may never be removed.

    NaN, Inf or a negative importance, also of a frozen group: NumericalError naming the block. A temperature
    above 0 needs a prior.
    """
    _check_importance(groups, importance, frozen)
    s = importance / groups.cost
    counted = ~frozen
    zero = _all_zero(groups, s, counted)
    notes = _zero_notes(np.flatnonzero(zero))

    score, clipped_share = s, None
    if transforms.clip:
        score, clipped_share = clip(groups, s, counted, transforms.clip_low, transforms.clip_high)
    if transforms.normalise is not None:
        score = normalise(groups, score, counted, transforms.normalise)
    correction = None
    if transforms.temperature > 0:
        if prior is None:
            raise ValueError("a temperature above 0 needs a prior")
        open_blocks = groups.by_block(counted) > 0
        correction = correct(groups, prior, open_blocks, temperature=transforms.temperature, tau=transforms.tau)
        score = _shifted(score, counted) * groups.gathered(correction.factor)[groups.block]
        notes += correction.notes
    score = _with_zero_layers(score, zero[groups.layer], counted)
    return Scores(
        per_parameter=s,
        score=score,
        order=rank(score, s, ~zero[groups.layer]),
        clipped_share=clipped_share,
        all_zero_layers=tuple(np.flatnonzero(zero).tolist()),
        factor=correction.factor if correction else None,
        tau_used=correction.tau if correction else None,
        uses_layer_prior=correction.uses_layer_prior if correction else None,
        notes=notes,
    )


def clip(
    groups: GroupTable, s: np.ndarray, counted: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """s limited to its global percentiles [low, high], float64 (G,), and each layer's clipped share, (L,)."""
    w = groups.cost * counted
    bottom, top = percentiles(s, w, low, high)
    clipped = np.clip(s, bottom, top)
    cost = np.bincount(groups.layer, weights=w, minlength=groups.num_layers)
    changed = np.bincount(groups.layer, weights=w * (clipped != s), minlength=groups.num_layers)
    return clipped, changed / np.maximum(cost, 1)


def rank(score: np.ndarray, s: np.ndarray, later: np.ndarray) -> np.ndarray:
    """int64 (G,): rows by ``later`` (False first), score, s; rows equal in all three keep the table's order,
    which is layer, kind, index."""
    return np.lexsort((s, score, later)).astype(np.int64, copy=False)


def _shifted(score: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Scores moved up by -min where the lowest is negative: a factor would turn their ranking round."""
    low = score[counted].min(initial=0.0)
    return score - low if low < 0 else score


def _with_zero_layers(score: np.ndarray, zero: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.where(zero, score[counted & ~zero].min(initial=0.0), score) if zero.any() else score


def _all_zero(groups: GroupTable, s: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """bool (L,): the layer has groups that count, and all of them are 0."""
    members = np.bincount(groups.layer, weights=counted, minlength=groups.num_layers)
    positive = np.bincount(groups.layer, weights=counted & (s > 0), minlength=groups.num_layers)
    return np.asarray((members > 0) & (positive == 0))


def _zero_notes(layers: np.ndarray) -> list[str]:
    names = ", ".join(str(layer) for layer in layers)
    return [f"every importance is 0 in layers {names}: their groups rank below all others"] if names else []


def _check_importance(groups: GroupTable, importance: np.ndarray, frozen: np.ndarray) -> None:
    if importance.shape != (len(groups),) or frozen.shape != (len(groups),):
        raise ValueError(f"{len(groups)} groups, but importance {importance.shape} and frozen {frozen.shape}")
    if frozen.all():
        raise ValueError("every group is frozen: there is nothing to score")
    bad = np.flatnonzero(~(np.isfinite(importance) & (importance >= 0)))
    if len(bad):
        row = bad[0]
        raise NumericalError(
            f"importance of layer {groups.layer[row]} {TABLE[groups.kind[row]].name} group {groups.index[row]} is "
            f"{importance[row]} ({len(bad)} of {len(groups)} groups are not finite and >= 0): look for NaN or Inf in "
            "the weights, or try --dtype float32 or another --importance_method"
        )
