"""Cost-weighted statistics: every parameter counts once and carries the value of its group.

In all formulas v is float64 (n,), the values, and w is int64 (n,), parameters behind each value; weight 0
leaves a value out of the statistic. Without a positive weight there is no statistic: percentiles are then NaN.
"""

import numpy as np


def percentiles(v: np.ndarray, w: np.ndarray, *q: float) -> list[float]:
    """The q-th percentiles (0 to 100) of v, each value repeated w times.

    Equal to ``np.percentile(np.repeat(v, w), q)`` without building the repetition: with W = Σ w and the
    repeated values sorted and numbered from 0, it is read at position h = (W - 1)·q/100, linearly between its
    neighbours.
    """
    order = np.argsort(v)
    end = np.cumsum(w[order])  # sorted value j fills the positions end[j-1] to end[j] - 1
    if not len(end) or not end[-1]:
        return [float("nan")] * len(q)
    last = int(end[-1]) - 1
    result = []
    for h in (last * percent / 100 for percent in q):
        below = min(int(h), last)
        low, high = v[order[np.searchsorted(end, [below, min(below + 1, last)], side="right")]]
        result.append(float(low + (high - low) * (h - below)))
    return result


def median(v: np.ndarray, w: np.ndarray) -> float:
    return percentiles(v, w, 50)[0]


def mean(v: np.ndarray, w: np.ndarray) -> float:
    """Σ w·v / Σ w, in float64 by numpy's pairwise summation, which no number of threads changes."""
    return float(np.sum(w * v) / np.sum(w))


def sigma(v: np.ndarray, w: np.ndarray) -> float:
    """Population standard deviation √(Σ w·(v - mean)² / Σ w)."""
    return float(np.sqrt(mean((v - mean(v, w)) ** 2, w)))
