"""How much two plans share of what they remove.

With A and B the removed groups of two plans and c the cost of a group, in parameters:

    J = Σ_{g ∈ A∩B} c_g / Σ_{g ∈ A∪B} c_g       (Jaccard 1912, weighted by cost)

1 means the same groups, 0 that no group is in both; None where neither removes anything. Two plans that agree only on
how much each block loses, and choose inside it at random, share J_chance: with a, b the groups they remove of a block
of n, a·b/n of them are expected in both. Integers are summed exactly, the rest in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from diagnostics.comparison.runs import Named
from diagnostics.run_folder import Block, Run

Layers = Sequence[Sequence[Block]]


@dataclass(frozen=True)
class Overlap:
    """total, by_layer (L values): J. by_chance: J_chance over the model. Names are those of the tables."""

    first: str
    second: str
    total: float | None
    by_layer: tuple[float | None, ...]
    by_chance: float | None


def overlaps(runs: Sequence[Named]) -> list[Overlap]:
    """Each pair of plans that were made for the same shapes, in the order of the runs."""
    pairs = combinations(runs, 2)
    return [overlap(a, b) for a, b in pairs if same_shapes(a.run, b.run)]


def same_shapes(a: Run, b: Run) -> bool:
    if a.blocks is None or b.blocks is None:
        return False
    return _shapes(a.blocks) == _shapes(b.blocks)


def overlap(a: Named, b: Named) -> Overlap:
    assert a.run.blocks is not None
    assert b.run.blocks is not None
    counted = _by_layer(a.run.blocks, b.run.blocks)
    by_layer = tuple(_jaccard(row[0], row[2]) for row in counted)
    total, by_chance = _totals(counted)
    return Overlap(a.name, b.name, total, by_layer, by_chance)


def shared_removals(a: Layers, b: Layers) -> tuple[float | None, float | None]:
    """(J, J_chance) of two plans for the same shapes."""
    return _totals(_by_layer(a, b))


def _by_layer(a: Layers, b: Layers) -> np.ndarray:
    """(L, 3): shared, expected to be shared, removed by a + b, in parameters."""
    return np.array([_counted(*pair) for pair in zip(a, b, strict=True)])


def _totals(counted: np.ndarray) -> tuple[float | None, float | None]:
    shared, expected, removed = counted.sum(axis=0)
    return _jaccard(shared, removed), _jaccard(expected, removed)


def _counted(a: Sequence[Block], b: Sequence[Block]) -> tuple[float, float, float]:
    """Of one layer, in parameters: removed by both; expected in both by chance; removed by a plus removed by b."""
    shared = expected = removed = 0.0
    for first, second in zip(a, b, strict=True):
        gone, gone_too = int((~first.keep).sum()), int((~second.keep).sum())
        shared += first.cost * int((~first.keep & ~second.keep).sum())
        expected += first.cost * gone * gone_too / max(1, first.width)
        removed += first.cost * (gone + gone_too)
    return shared, expected, removed


def _jaccard(shared: float, removed: float) -> float | None:
    """|A∪B| = |A| + |B| − |A∩B|."""
    return float(shared / (removed - shared)) if removed > 0 else None


def _shapes(layers: Layers) -> list[list[tuple[int, int]]]:
    return [[(block.width, block.cost) for block in layer] for layer in layers]
