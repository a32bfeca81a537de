"""Whether blocks lose what their scores promised: the forward check of a plan.

For every block b that the plan narrows,

    promise_b    Σ importance over its removed groups
    measured_b   loss increase when b alone is narrowed so, nats/token, on text that importance did not see
    κ            median of measured_b / promise_b over blocks where both are positive: nats/token a unit of importance
    factor_b     measured_b / (κ · promise_b)

A block is flagged where factor_b > FLAG_FACTOR and measured_b > FLAG_SHARE of the sum of the positive measured losses.
κ absorbs the unit of the criterion and all that the blocks have in common. FLAG_FACTOR is 4 because on trained models
most blocks lie within a factor of 2 of κ either way, so twice that again is no longer spread; FLAG_SHARE leaves blocks
alone that lose nothing worth mending. A block that promised nothing (importance 0) and loses a share is flagged too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.groups import BlockTable
from core.plan import PruningPlan

FLAG_FACTOR = 4.0
FLAG_SHARE = 0.05


@dataclass(frozen=True)
class PlanCheck:
    """planned: int64 (B,), groups that each block loses. promise, measured: float64 (B,). blocks: which they are."""

    planned: np.ndarray
    promise: np.ndarray
    measured: np.ndarray
    blocks: BlockTable

    @property
    def kappa(self) -> float | None:
        """Nats/token a unit of importance; None where no block has both."""
        both = (self.promise > 0) & (self.measured > 0)
        return float(np.median(self.measured[both] / self.promise[both])) if both.any() else None

    @property
    def factor(self) -> np.ndarray:
        """float64 (B,): measured over expected; inf where a loss was not promised at all, NaN where nothing goes."""
        expected = self.promise * (self.kappa or 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(expected > 0, self.measured / expected, np.where(self.measured > 0, np.inf, 0.0))
        return np.where(self.planned > 0, found, np.nan)

    @property
    def share(self) -> np.ndarray:
        """float64 (B,): of the sum of the positive measured losses."""
        total = self.measured[self.measured > 0].sum()
        return self.measured / total if total > 0 else np.zeros_like(self.measured)

    def names(self, blocks: Iterable[int]) -> str:
        """``attention of layer 3, mlp of layer 4``."""
        return ", ".join(self.blocks.block_name(block) for block in blocks)

    @property
    def flagged(self) -> np.ndarray:
        """Ascending blocks whose loss is far above what their scores promised."""
        with np.errstate(invalid="ignore"):
            return np.flatnonzero((self.factor > FLAG_FACTOR) & (self.share > FLAG_SHARE))

    def to_json(self) -> list[dict[str, Any]]:
        """A row for each block that loses something."""
        factor, share, flagged = self.factor, self.share, self.flagged
        return [
            {
                "layer": int(self.blocks.block_layer[block]),
                "kind": self.blocks.kind_of(block).name,
                "groups_removed": int(self.planned[block]),
                "promised_importance": self.promise[block],
                "measured_nats_per_token": self.measured[block],
                "measured_over_expected": factor[block],
                "share_of_all_measured": share[block],
                "flagged": bool(block in flagged),
            }
            for block in np.flatnonzero(self.planned).tolist()
        ]


def check_of(plan: PruningPlan, importance: np.ndarray, measured: np.ndarray) -> PlanCheck:
    """importance: float64 (G,). measured: float64 (L, kinds), nats/token of each block alone."""
    groups = plan.groups
    planned = groups.by_block(~plan.keep).astype(np.int64)
    promise = groups.by_block(importance * ~plan.keep)
    return PlanCheck(planned, promise, groups.gathered(measured), plan.architecture.block_table)
