"""The pruning plan: the whole decision, as data. It can be printed, saved, compared and replayed."""

from dataclasses import dataclass, replace

import numpy as np

from core.families import Member, member_rows
from core.groups import Architecture, GroupTable, LayerShape
from core.kinds import TABLE
from core.shown import html_table

SCHEMA_VERSION = 1
EQUAL_SIZE = 0.001  # of all parameters: plans that differ by less are of equal size


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """Which groups stay. Surgery follows it and holds no opinions.

    architecture: of the model the plan was made for; a plan fits no other.
    keep: bool array of shape (G,) in GroupTable order, True = retained. All False in a removed layer.
    removed_layers: indices of decoder layers removed whole, ascending.
    requested_ratio, ratio_of: what was asked (``total`` or ``prunable`` parameters).
    budget_params: the largest number of parameters the request allowed to remove.
    removed_params: parameters really removed (a removed layer counts its norms too).
    gap_reason: why budget_params - removed_params is not 0 (empty when it is).
    """

    architecture: Architecture
    keep: np.ndarray
    removed_layers: tuple[int, ...]
    requested_ratio: float
    ratio_of: str
    budget_params: int
    removed_params: int
    gap_reason: str

    def __repr__(self) -> str:
        rates = 100 * self.layer_rates()
        return (
            f"PruningPlan({self.removed_params:,} of {self.architecture.total_params:,} parameters go, "
            f"{100 * self.achieved_of_total:.1f} %; layers lose {rates.min():.0f} % to {rates.max():.0f} %)"
        )

    def _repr_html_(self) -> str:
        rows = [
            [str(layer), f"{100 * rate:.1f} %", *(f"{100 * part:.1f} %" for part in blocks)]
            for layer, (rate, blocks) in enumerate(zip(self.layer_rates(), self.block_rates(), strict=True))
        ]
        return html_table(repr(self), rows, ["layer", "removed", *(TABLE[kind].name for kind in self.groups.kinds)])

    @property
    def groups(self) -> GroupTable:
        return self.architecture.groups

    @property
    def budget_gap_params(self) -> int:
        return self.budget_params - self.removed_params

    @property
    def achieved_of_total(self) -> float:
        return self.removed_params / self.architecture.total_params

    @property
    def achieved_of_prunable(self) -> float:
        return self.removed_params / self.architecture.prunable_params

    @property
    def remaining_layers(self) -> list[int]:
        """Original indices of the layers that stay, in order; their position is their new index."""
        return [layer for layer in range(self.architecture.num_layers) if layer not in self.removed_layers]

    def kept(self, layer: int, kind: int) -> np.ndarray:
        """Ascending int64 indices of the groups that stay in a block."""
        return np.flatnonzero(self.keep[self.groups.rows(layer, kind)])

    def columns(self, layer: int, member: Member) -> np.ndarray:
        """int64: positions along ``member.axis`` that stay in this layer, ascending inside each of its parts."""
        return member_rows(member, self.architecture.layers[layer], self.kept(layer, member.kind))

    def keeps_whole(self, layer: int, kind: int) -> bool:
        """Whether nothing leaves a block."""
        return bool(self.keep[self.groups.rows(layer, kind)].all())

    def pruned_shape(self, layer: int) -> LayerShape | None:
        """Widths of an original layer after surgery; None where it is removed whole."""
        if layer in self.removed_layers:
            return None
        shape = self.architecture.layers[layer]
        return shape.narrowed([len(self.kept(layer, block.kind)) for block in shape.blocks])

    @property
    def pruned_architecture(self) -> Architecture:
        """Widths and counts after surgery, in the new numbering of layers."""
        shapes = [self.pruned_shape(layer) for layer in range(self.architecture.num_layers)]
        return replace(
            self.architecture,
            total_params=self.architecture.total_params - self.removed_params,
            layers=tuple(shape for shape in shapes if shape is not None),
        )

    def layer_rates(self) -> np.ndarray:
        """float64 (L,): removed / original prunable parameters of each layer (1.0 where it is removed whole)."""
        groups = self.groups
        return groups.by_layer(groups.cost * ~self.keep) / np.maximum(groups.by_layer(groups.cost), 1)

    def block_rates(self) -> np.ndarray:
        """float64 (L, kinds): removed fraction of each block's groups, columns attention, mlp, as ``GroupTable.spread``
        has them."""
        groups = self.groups
        return groups.spread(groups.by_block(~self.keep) / np.maximum(groups.widths, 1))


def nothing_removed(architecture: Architecture) -> PruningPlan:
    """The plan that keeps everything: the dense model, where a plan is asked for."""
    keep = np.ones(len(architecture.groups), dtype=bool)
    return PruningPlan(architecture, keep, (), 0.0, "total", 0, 0, "")
