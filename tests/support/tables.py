"""Tables of a few groups, for tests whose expected values are worked out by hand."""

from typing import Any

import numpy as np

from core.groups import Architecture, GroupTable, LayerShape
from core.measured import Prior
from core.transforms import Transforms
from importance.scoring import Scores, score_groups

METHODS = ["log", "sqrt", "minmax", "zscore"]


def architecture(
    *layers: tuple[int, int], kv: int = 10, channel: int = 3, norms: int = 2, rest: int = 50
) -> Architecture:
    """Layers given as (K, F). kv, channel: cost of a group. norms: other parameters of a layer. rest: all others."""
    shapes = tuple(LayerShape(2 * k, k, 4, f, kv, channel, norm_params=norms) for k, f in layers)
    return Architecture("llama", 8, rest + sum(shape.total_params for shape in shapes), shapes)


def reshaped(shape: LayerShape, **facts: int) -> LayerShape:
    """The same dense layer with other values of its constructor's arguments."""
    return LayerShape(**shape.facts() | facts)


def cheap_groups(*layers: tuple[int, int]) -> GroupTable:
    """A KV group costs 2 parameters, a channel 1."""
    return architecture(*layers, kv=2, channel=1).groups


def score(
    groups: GroupTable,
    importance: list[float],
    *,
    frozen: list[bool] | None = None,
    prior: Prior | None = None,
    **options: Any,
) -> Scores:
    """Scores under Transforms(**options); no group is frozen unless said so."""
    fixed = np.zeros(len(groups), dtype=bool) if frozen is None else np.array(frozen)
    return score_groups(groups, np.array(importance, float), Transforms(**options), frozen=fixed, prior=prior)


def prior(block: list[list[float]], layer: list[float]) -> Prior:
    return Prior(np.array(block, float), np.array(layer, float), "loss", 32, 2.0)


def in_layer(groups: GroupTable, order: np.ndarray, layer: int) -> list[int]:
    """The part of a ranking that concerns one layer."""
    return [int(row) for row in order if groups.layer[row] == layer]
