"""What may leave at all: frozen layers, floors, caps and rounding, as a number of groups per block.

A block is pruned in *steps*. An attention step is one KV group. An MLP step is ``round_to`` channels, except
that a width F that is no multiple of it starts with a step of F mod round_to channels, down to the next lower
multiple.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from core.errors import UsageError
from core.groups import KINDS, Architecture, LayerShape


@dataclass(frozen=True)
class Limits:
    """What the user rules out. A value that cannot work: UsageError.

    freeze_first, freeze_last: layers at either end that stay as they are.
    max_block_ratio: largest fraction of a block's groups that may go.
    min_kv_heads: KV groups that a layer retains (all of them where it has fewer).
    round_to: MLP widths are kept at a multiple of this; a width up to it stays whole.
    epsilon: a layer that keeps less than this fraction of its prunable parameters is removed whole. That is
    asked for by name, so floors and max_block_ratio do not hold it back; frozen layers and the budget do.
    """

    freeze_first: int = 0
    freeze_last: int = 0
    max_block_ratio: float = 1.0
    min_kv_heads: int = 1
    round_to: int = 1
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        _require(self.freeze_first >= 0, "--freeze_first_n_layers", self.freeze_first, "of at least 0")
        _require(self.freeze_last >= 0, "--freeze_last_n_layers", self.freeze_last, "of at least 0")
        _require(0 < self.max_block_ratio <= 1, "--max_block_ratio", self.max_block_ratio, "above 0, up to 1")
        _require(self.min_kv_heads >= 1, "--min_kv_heads", self.min_kv_heads, "of at least 1")
        _require(self.round_to >= 1, "--round_to", self.round_to, "of at least 1")
        _require(0 <= self.epsilon < 1, "--epsilon", self.epsilon, "of at least 0, below 1")


@dataclass(frozen=True)
class BlockSteps:
    """All int64 (2L,), a row a block in the order of ``GroupTable.block``.

    cost: parameters of one group. removable: the most groups the block may lose, 0 in frozen layers; always a
    whole number of steps. first, step: groups in the first step (0 where it is like the others) and in each
    later one.
    """

    cost: np.ndarray
    removable: np.ndarray
    first: np.ndarray
    step: np.ndarray

    def next_step(self, removed: np.ndarray) -> np.ndarray:
        """Groups in the step that follows after ``removed`` groups, int64 (2L,); 0 where none is left."""
        size = np.where(removed < self.first, self.first, self.step)
        return np.where(removed < self.removable, size, 0)


def block_steps(architecture: Architecture, limits: Limits) -> BlockSteps:
    rows = []
    for shape in architecture.layers:
        first, step = shape.intermediate_size % limits.round_to, limits.round_to
        rows.append((shape.kv_group_params, _removable_kv_groups(shape, limits), 0, 1))
        rows.append((shape.channel_params, _removable_channels(shape, limits), first, step))
    cost, removable, first_steps, later_steps = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    free = ~np.repeat(frozen_layers(architecture, limits), len(KINDS))
    return BlockSteps(cost, removable * free, first_steps, later_steps)


def frozen_layers(architecture: Architecture, limits: Limits) -> np.ndarray:
    """bool (L,): the first and the last layers that the user froze."""
    layer = np.arange(architecture.num_layers)
    return (layer < limits.freeze_first) | (layer >= architecture.num_layers - limits.freeze_last)


def frozen_groups(architecture: Architecture, limits: Limits) -> np.ndarray:
    """bool (G,): groups that can never be removed, in GroupTable order.

    Those of frozen layers, and those of blocks that may not lose one step (the only KV group of a layer, a
    width up to round_to). Every other group takes part in rankings and their statistics.
    """
    return np.asarray((block_steps(architecture, limits).removable == 0)[architecture.groups.block])


def removable_params(architecture: Architecture, limits: Limits) -> int:
    """The most parameters that floors, caps and frozen layers let go, without removal of whole layers."""
    steps = block_steps(architecture, limits)
    return int(np.sum(steps.removable * steps.cost))


def exact(number: float) -> Fraction:
    """The decimal that the user typed: 0.29 is 29/100, not the binary fraction a little below it."""
    return Fraction(repr(float(number)))


def _removable_kv_groups(shape: LayerShape, limits: Limits) -> int:
    heads = shape.num_kv_heads
    return min(heads - min(limits.min_kv_heads, heads), int(exact(limits.max_block_ratio) * heads))


def _removable_channels(shape: LayerShape, limits: Limits) -> int:
    width, step = shape.intermediate_size, limits.round_to
    first = width % step
    most = min(width - step, int(exact(limits.max_block_ratio) * width))
    return first + (most - first) // step * step if most >= first else 0


def _require(holds: bool, flag: str, value: float, bound: str) -> None:
    if not holds:
        raise UsageError(f"{flag} {value}: needs a number {bound}")
