"""Cost-weighted statistics by layer: every parameter counts once and carries the value of its group."""

from collections.abc import Sequence

import numpy as np

from core.groups import GroupTable
from core.weighted import percentiles


def quantiles(v: np.ndarray, w: np.ndarray, q: Sequence[float]) -> np.ndarray:
    """``core.weighted.percentiles`` at fractions q between 0 and 1; float64 of the length of q."""
    return np.array(percentiles(v, w, *(100 * fraction for fraction in q)), dtype=np.float64)


def layer_quantiles(groups: GroupTable, values: np.ndarray, counted: np.ndarray, q: Sequence[float]) -> np.ndarray:
    """float64 (L, len(q)) over the finite values of the groups that count; over all where none does."""
    rows = [groups.rows_of_layer(layer) for layer in range(groups.num_layers)]
    return np.array([quantiles(values[r], _weights(groups.cost[r], counted[r], values[r]), q) for r in rows])


def block_quantiles(groups: GroupTable, values: np.ndarray, q: Sequence[float]) -> np.ndarray:
    """float64 (L, kinds, len(q)) over the finite values of each block (``GroupTable.spread``)."""
    every = np.ones(len(groups), dtype=bool)
    blocks = [groups.rows_of(block) for block in range(groups.num_blocks)]
    return groups.spread(
        np.array([quantiles(values[r], _weights(groups.cost[r], every[r], values[r]), q) for r in blocks])
    )


def layer_means(groups: GroupTable, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """float64 (L,): Σ c·v / Σ c over the same groups as ``layer_quantiles``; NaN where no value is finite."""
    return np.array([_mean(groups, values, counted, layer) for layer in range(groups.num_layers)])


def _mean(groups: GroupTable, values: np.ndarray, counted: np.ndarray, layer: int) -> float:
    rows = groups.rows_of_layer(layer)
    w = _weights(groups.cost[rows], counted[rows], values[rows])
    return float(np.sum(w * np.where(w > 0, values[rows], 0.0)) / np.sum(w)) if w.any() else float("nan")


def _weights(cost: np.ndarray, counted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64 (n,): the cost of each group that takes part, 0 for the others."""
    return np.asarray(cost * (counted if counted.any() else True) * np.isfinite(values), dtype=np.int64)
