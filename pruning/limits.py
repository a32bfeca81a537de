"""What may leave at all: frozen layers, floors, caps and rounding, as a number of groups per block.

A block is pruned in *steps*. An attention step is ``kv_round_to`` KV groups, an MLP step ``round_to`` channels (which
limits bound a kind of block, its row in ``core/kinds.py`` says), except that a width that is no multiple of it starts
with a step of width mod round_to groups, down to the next lower multiple.

Protected groups rank behind all others of their block and never go; a cap is the most groups that a block may lose.
Both come from measurements (``--protect``), where the other limits come from the user or from the target.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from core.errors import UsageError
from core.groups import Architecture
from core.kinds import TABLE


@dataclass(frozen=True)
class Limits:
    """What the user rules out. A value that cannot work: UsageError.

    freeze_first, freeze_last: layers at either end that stay as they are.
    max_block_ratio: largest fraction of a block's groups that may go.
    min_kv_heads: KV groups that a layer retains (all of them where it has fewer).
    round_to: MLP widths are kept at a multiple of this; a width up to it stays whole.
    epsilon: a layer that keeps less than this fraction of its prunable parameters is removed whole. That is
    asked for by name, so floors and max_block_ratio do not hold it back; frozen layers and the budget do.

    The last three come from the runtime that will serve the result (``pruning/targets.py``).
    kv_round_to: KV groups are kept at a multiple of this; a width up to it stays whole.
    uniform: every layer gets the same pair of widths (``pruning/uniform.py``).
    kv_widths: with uniform, the numbers of KV groups to choose among; empty allows any.

    protected: rows of the GroupTable that never go. caps: the most groups that each block may lose, one entry a block
    in the order of ``GroupTable.block``; empty caps none. Epsilon leaves layers alone that either of them concerns.
    """

    freeze_first: int = 0
    freeze_last: int = 0
    max_block_ratio: float = 1.0
    min_kv_heads: int = 1
    round_to: int = 1
    epsilon: float = 0.0
    kv_round_to: int = 1
    uniform: bool = False
    kv_widths: tuple[int, ...] = ()
    protected: tuple[int, ...] = ()
    caps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(self.freeze_first >= 0, "--freeze_first_n_layers", self.freeze_first, "of at least 0")
        _require(self.freeze_last >= 0, "--freeze_last_n_layers", self.freeze_last, "of at least 0")
        _require(0 < self.max_block_ratio <= 1, "--max_block_ratio", self.max_block_ratio, "above 0, up to 1")
        _require(self.min_kv_heads >= 1, "--min_kv_heads", self.min_kv_heads, "of at least 1")
        _require(self.round_to >= 1, "--round_to", self.round_to, "of at least 1")
        _require(0 <= self.epsilon < 1, "--epsilon", self.epsilon, "of at least 0, below 1")
        _require(self.kv_round_to >= 1, "--tensor_parallel", self.kv_round_to, "of at least 1")
        if self.uniform and (self.freeze_first or self.freeze_last):
            raise UsageError(
                "--target stock gives all layers the same widths, so frozen layers would keep every layer as it is: "
                "leave out --freeze_first_n_layers and --freeze_last_n_layers, or use --target hf"
            )
        if self.uniform and self.epsilon:
            raise UsageError(
                "--target stock gives all layers the same widths, so no layer can fall under --epsilon alone: "
                "leave out --epsilon, or use --target hf"
            )

    def floor(self, kind: int) -> int:
        """Groups that a block of this kind retains, its first step aside."""
        name = TABLE[kind].floor
        return 1 if name is None else int(getattr(self, name))

    def step(self, kind: int) -> int:
        """Groups in a step of such a block: its width is kept at a multiple of this."""
        name = TABLE[kind].step
        return 1 if name is None else int(getattr(self, name))

    def widths(self, kind: int) -> tuple[int, ...]:
        """With uniform, the widths of such blocks to choose among; empty allows any."""
        name = TABLE[kind].widths
        return () if name is None else tuple(getattr(self, name))


@dataclass(frozen=True)
class BlockSteps:
    """All int64 (B,), a row a block in the order of ``GroupTable.block``.

    cost: parameters of one group. removable: the most groups the block may lose, 0 in frozen layers; always a
    whole number of steps. first, step: groups in the first step (0 where it is like the others) and in each
    later one.
    """

    cost: np.ndarray
    removable: np.ndarray
    first: np.ndarray
    step: np.ndarray

    def next_step(self, removed: np.ndarray) -> np.ndarray:
        """Groups in the step that follows after ``removed`` groups, int64 (B,); 0 where none is left."""
        size = np.where(removed < self.first, self.first, self.step)
        return np.where(removed < self.removable, size, 0)


def block_steps(architecture: Architecture, limits: Limits) -> BlockSteps:
    """The steps that each block may take by itself; ``uniform`` ties layers together and is no matter of a block."""
    rows = []
    for block, most in zip(architecture.blocks, _most(architecture, limits).tolist(), strict=True):
        step = limits.step(block.kind)
        removable = _removable(block.width, step, limits.floor(block.kind), limits, most)
        rows.append((block.cost, removable, block.width % step, step))
    costs, removables, firsts, steps = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    free = ~frozen_layers(architecture, limits)[architecture.block_table.block_layer]
    return BlockSteps(costs, removables * free, firsts, steps)


def protected_groups(architecture: Architecture, limits: Limits) -> np.ndarray:
    """bool (G,): the groups that ``limits.protected`` names."""
    protected = np.zeros(len(architecture.groups), dtype=bool)
    protected[list(limits.protected)] = True
    return protected


def protected_last(architecture: Architecture, order: np.ndarray, limits: Limits) -> np.ndarray:
    """int64 (G,): the ranking with protected groups behind all others; otherwise as it was."""
    behind = protected_groups(architecture, limits)[order]
    return np.concatenate([order[~behind], order[behind]])


def guarded_layers(architecture: Architecture, limits: Limits) -> np.ndarray:
    """bool (L,): layers with a protected group or a cap, which are never removed whole."""
    blocks = architecture.block_table
    guarded = _protected_by_block(architecture, limits) > 0
    if limits.caps:
        guarded |= np.array(limits.caps) < blocks.widths
    return blocks.layer_sums(guarded)


def uniform_widths(architecture: Architecture, limits: Limits, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths that all layers can have at once, widest first, and the parameters that go on the way down to each.

    Both int64 (n,); all layers are those that have a block of this kind. Layers of different widths (a model pruned
    before) meet at the narrowest at the widest.
    No common width: UsageError.
    """
    steps, blocks = block_steps(architecture, limits), architecture.block_table.blocks_of_kind(kind)
    width = architecture.block_table.widths[blocks]
    cost, removable, first, step = (a[blocks] for a in (steps.cost, steps.removable, steps.first, steps.step))
    common = np.arange(width.min(), -1, -1)
    for w, most, f, s in set(zip(width.tolist(), removable.tolist(), first.tolist(), step.tolist(), strict=True)):
        gone = w - common
        common = common[(gone == 0) | ((gone >= f) & ((gone - f) % s == 0) & (gone <= most))]
    if limits.widths(kind):
        common = common[np.isin(common, limits.widths(kind))]
    if not len(common):
        raise UsageError(
            f"--target stock: no {TABLE[kind].width_noun} is possible in all layers, which have {width.min()} to "
            f"{width.max()}; lower --min_kv_heads and --round_to, raise --max_block_ratio, or use --target hf"
        )
    return common, np.sum(width * cost) - common * np.sum(cost)


def frozen_layers(architecture: Architecture, limits: Limits) -> np.ndarray:
    """bool (L,): the first and the last layers that the user froze."""
    layer = np.arange(architecture.num_layers)
    return (layer < limits.freeze_first) | (layer >= architecture.num_layers - limits.freeze_last)


def frozen_groups(architecture: Architecture, limits: Limits) -> np.ndarray:
    """bool (G,): groups that can never be removed, in GroupTable order.

    Those of frozen layers, those that are protected, and those of blocks that may not lose one step (the only KV group
    of a layer, a width up to round_to). Every other group takes part in rankings and their statistics.
    """
    still = (_removable_groups(architecture, limits) == 0)[architecture.groups.block]
    return np.asarray(still | protected_groups(architecture, limits))


def removable_params(architecture: Architecture, limits: Limits) -> int:
    """The most parameters that floors, caps and frozen layers let go, without removal of whole layers."""
    return int(np.sum(_removable_groups(architecture, limits) * block_steps(architecture, limits).cost))


def smallest_removal_params(architecture: Architecture, limits: Limits) -> int:
    """Parameters of the cheapest removal possible, one step as a rule; 0 where there is none.

    With ``uniform`` it is one step in all layers, or what it takes to make their widths equal.
    """
    if limits.uniform:
        least = least_params(architecture, limits)
        paths = [uniform_widths(architecture, limits, kind)[1] for kind in architecture.kinds]
        return least or min((int(params[1]) for params in paths if len(params) > 1), default=0)
    steps = block_steps(architecture, limits)
    params = steps.next_step(np.zeros_like(steps.cost)) * steps.cost
    return int(params[params > 0].min()) if params.any() else 0


def least_params(architecture: Architecture, limits: Limits) -> int:
    """Parameters that go in any case: what ``uniform`` takes to make the widths of all layers equal."""
    if not limits.uniform:
        return 0
    return sum(int(uniform_widths(architecture, limits, kind)[1][0]) for kind in architecture.kinds)


def exact(number: float) -> Fraction:
    """The decimal that the user typed: 0.29 is 29/100, not the binary fraction a little below it."""
    return Fraction(repr(float(number)))


def _removable_groups(architecture: Architecture, limits: Limits) -> np.ndarray:
    """int64 (B,): the most groups that each block may lose."""
    if not limits.uniform:
        return block_steps(architecture, limits).removable
    blocks = architecture.block_table
    narrowest = {kind: uniform_widths(architecture, limits, kind)[0][-1] for kind in blocks.kinds}
    return blocks.widths - np.array([narrowest[kind] for kind in blocks.block_kind], dtype=np.int64)


def _most(architecture: Architecture, limits: Limits) -> np.ndarray:
    """int64 (B,): the most groups of each block that protection and caps let go, steps and floors aside."""
    most = architecture.block_table.widths - _protected_by_block(architecture, limits)
    return np.minimum(most, limits.caps) if limits.caps else most


def _protected_by_block(architecture: Architecture, limits: Limits) -> np.ndarray:
    """int64 (B,): protected groups of each block."""
    if not limits.protected:  # the table of groups is not needed for that
        return np.zeros_like(architecture.block_table.widths)
    return architecture.groups.by_block(protected_groups(architecture, limits)).astype(np.int64)


def _removable(width: int, step: int, floor: int, limits: Limits, most: int) -> int:
    """A whole number of steps, ``most`` groups at most, that leaves ``floor`` groups and one step, or all of a width
    that has no more."""
    first = width % step
    most = min(most, width - max(floor, step), int(exact(limits.max_block_ratio) * width))
    return first + (most - first) // step * step if most >= first else 0


def _require(holds: bool, flag: str, value: float, bound: str) -> None:
    if not holds:
        raise UsageError(f"{flag} {value}: needs a number {bound}")
