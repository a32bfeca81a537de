"""Correction: a block that the model misses a lot has its scores raised, one it hardly misses lowered.

    score ← score · B^T,   B = ln(1 + Δ)

Δ is the prior (core.measured.py), nats per token for ``loss``; T the temperature. τ gates which Δ a layer
uses: Δ_layer < τ → the layer's for all its blocks, otherwise each block's own. τ = 0 is each block's own
throughout, τ = inf the layer's throughout, ``auto`` the 25th percentile of Δ_layer (linear between
neighbours). The gate is a step on purpose: a layer just below τ and one just above are treated differently.

Floor. Δ is raised to at least 1 % of the median Δ, so that B stays positive where removing a block *helps*
(Δ < 0): such a block is among the first to go, never a negative or complex score. A Δ belongs to a block, not
to its parameters, so the median runs over the blocks with a group that may be removed, each counted once,
after the gate; likewise the 25th percentile over their layers. Median ≤ 0: the median of the positive Δ takes
its place. No positive Δ at all: B has nothing to tell blocks apart by, and the factor is 1 throughout.
"""

from dataclasses import dataclass

import numpy as np

from core.errors import NumericalError, UsageError
from core.groups import GroupTable
from core.measured import Prior

FLOOR_OF_MEDIAN = 0.01


@dataclass(frozen=True)
class Correction:
    """factor: float64 (L, kinds), B^T of every block (``GroupTable.spread``), positive and finite. notes: sentences
    for the report.
    tau: the threshold used, in the prior's unit. uses_layer_prior: bool (L,), the layers below it."""

    factor: np.ndarray
    tau: float
    uses_layer_prior: np.ndarray
    notes: list[str]


def correct(
    groups: GroupTable, prior: Prior, blocks: np.ndarray, *, temperature: float, tau: float | str
) -> Correction:
    """The factor of every block. blocks: bool (B,), those with a group that may be removed, at least one.

    A Δ that is NaN or Inf: NumericalError. A temperature that overflows: UsageError.
    """
    _check_finite(groups, prior)
    threshold = _threshold(prior.layer[groups.layer_sums(blocks)], tau)
    uses_layer_prior = (prior.layer < threshold) & (tau != 0)
    layer = groups.block_layer
    delta = np.where(uses_layer_prior[layer], prior.layer[layer], groups.gathered(prior.block))
    factor, notes = _factor(delta, blocks, temperature)
    return Correction(groups.spread(factor), threshold, uses_layer_prior, notes)


def _threshold(layer_deltas: np.ndarray, tau: float | str) -> float:
    return float(np.percentile(layer_deltas, 25)) if tau == "auto" else float(tau)


def _factor(delta: np.ndarray, blocks: np.ndarray, temperature: float) -> tuple[np.ndarray, list[str]]:
    centre = np.median(delta[blocks])
    if centre <= 0:
        if not (delta[blocks] > 0).any():
            return np.ones_like(delta), ["correction: no block has a positive prior, so every factor is 1"]
        centre = np.median(delta[blocks & (delta > 0)])
    floor = FLOOR_OF_MEDIAN * centre
    with np.errstate(over="ignore", under="ignore"):
        factor = np.log1p(np.maximum(delta, floor)) ** temperature
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise UsageError(
            f"--temperature {temperature:g} takes ln(1 + prior)^T out of float64's range; use a smaller one"
        )
    raised = int((delta[blocks] < floor).sum())
    note = f"correction: {raised} blocks with a prior below {floor:.3g} use {floor:.3g}"
    return factor, [note] if raised else []


def _check_finite(groups: GroupTable, prior: Prior) -> None:
    blocks = groups.gathered(prior.block)
    bad_blocks, bad_layers = np.flatnonzero(~np.isfinite(blocks)), np.flatnonzero(~np.isfinite(prior.layer))
    if len(bad_blocks):
        block = bad_blocks[0]
        where = f"layer {groups.block_layer[block]} {groups.kind_of(block).name}"
        raise NumericalError(f"the prior of {where} is {blocks[block]}")
    if len(bad_layers):
        raise NumericalError(f"the prior of layer {bad_layers[0]} is {prior.layer[bad_layers[0]]}")
