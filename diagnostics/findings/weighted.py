"""Cost-weighted statistics by layer: every parameter counts once and carries the value of its group."""

from collections.abc import Sequence

import numpy as np

from core.groups import GroupTable


def quantiles(v: np.ndarray, w: np.ndarray, q: Sequence[float]) -> np.ndarray:
    """Quantiles of v, each value repeated w times; float64 of the length of q (fractions between 0 and 1).

    Equal to ``np.quantile(np.repeat(v, w), q)`` without building the repetition: with W = Σ w and the
    repeated values numbered from 0, read at position h = (W - 1)·q, linearly between neighbours.
    v: float64 (n,). w: int64 (n,), at least one positive, or every answer is NaN.
    """
    order = np.argsort(v, kind="stable")
    end = np.cumsum(w[order])
    if not len(end) or end[-1] == 0:
        return np.full(len(q), np.nan)
    last = int(end[-1]) - 1
    h = last * np.asarray(q, dtype=np.float64)
    below = np.minimum(h.astype(np.int64), last)
    low = v[order[np.searchsorted(end, below, side="right")]]
    high = v[order[np.searchsorted(end, np.minimum(below + 1, last), side="right")]]
    return np.asarray(low + (high - low) * (h - below), dtype=np.float64)


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
