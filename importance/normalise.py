"""Normalisation: what a score means inside its layer, all its blocks together.

For the groups of one layer, s = importance per parameter, statistics cost-weighted (core/weighted.py):

    log     y = ln(1 + s/median(s)),  score = y / mean(y)      ≥ 0, scale-free, robust to a few huge channels
    sqrt    y = √s,                   score = y / mean(y)      ≥ 0, scale-free, milder
    minmax  (s - min) / (max - min)                            [0, 1]
    zscore  (s - mean) / σ                                     centred

The function comes first and the scale last: dividing s by its mean *before* the function would apply the same
monotone map to every layer, and every method would rank every group alike.

Corner cases. Median 0 in a layer that is not all zero: the smallest positive s takes its place. A constant
layer (the groups that count all have the same s) gets the value that its mean would have: 1, 1, 0.5, 0. Each
method is first fed x = s/max(s), which changes none of the formulas and keeps squares of tiny importances
above underflow.
"""

from collections.abc import Callable

import numpy as np

from core.errors import NumericalError
from core.groups import GroupTable
from core.weighted import mean, median, sigma

LayerMap = Callable[[np.ndarray, np.ndarray], np.ndarray]


def normalise(groups: GroupTable, s: np.ndarray, counted: np.ndarray, method: str) -> np.ndarray:
    """Scores float64 (G,), each layer normalised by itself.

    s: float64 (G,), finite, ≥ 0. counted: bool (G,), the groups that statistics run over. A group that does
    not count is mapped by its layer's statistics; in a layer where none counts, all of them do (it concerns
    nobody else). Importances too far apart for float64 (a factor above 1e300 in one layer): NumericalError.
    """
    score = np.empty(len(groups))
    for layer in range(groups.num_layers):
        rows = groups.rows_of_layer(layer)
        w = _weights(groups.cost[rows], counted[rows])
        score[rows] = normalise_layer(s[rows], w, method)
        if not np.isfinite(score[rows]).all():
            raise NumericalError(f"importances of layer {layer} are spread too widely for --norm_method {method}")
    return score


def normalise_layer(s: np.ndarray, w: np.ndarray, method: str) -> np.ndarray:
    """Scores float64 (n,) of one layer. w: int64 (n,), cost of the groups that count and 0 for the others."""
    if not w.any():
        return np.zeros_like(s)
    top, bottom = s[w > 0].max(), s[w > 0].min()
    function, value_of_mean = METHODS[method]
    if top == bottom:
        return np.full_like(s, value_of_mean)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and Inf are refused by the caller
        return function(s / top, w)


def log(s: np.ndarray, w: np.ndarray) -> np.ndarray:
    """ln(1 + s/median) over its mean. Vectorised logarithms may dip by one rounding step where s rises; the
    running maximum along ascending s takes that out, so the order inside the layer is exactly that of s."""
    centre = median(s, w) or s[(w > 0) & (s > 0)].min()
    ascending = np.argsort(s)
    y = np.empty_like(s)
    y[ascending] = np.maximum.accumulate(np.log1p(s[ascending] / centre))
    return np.asarray(y / mean(y, w))


def sqrt(s: np.ndarray, w: np.ndarray) -> np.ndarray:
    y = np.sqrt(s)
    return np.asarray(y / mean(y, w))


def minmax(s: np.ndarray, w: np.ndarray) -> np.ndarray:
    low, high = s[w > 0].min(), s[w > 0].max()
    return np.asarray((s - low) / (high - low))


def zscore(s: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.asarray((s - mean(s, w)) / sigma(s, w))


# method: (function of s and w, score of a constant layer)
METHODS: dict[str, tuple[LayerMap, float]] = {
    "log": (log, 1.0),
    "sqrt": (sqrt, 1.0),
    "minmax": (minmax, 0.5),
    "zscore": (zscore, 0.0),
}


def _weights(cost: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return cost * counted if counted.any() else cost
