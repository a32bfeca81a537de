"""Wanda: weights times the norm of what they read (arXiv:2306.11695), one forward pass.

    I_g = sum over the group's ``o_proj``/``down_proj`` columns j of  sum_d |w_dj| * ||x_j||_2

||x_j||_2 runs over every token of the windows.
"""

from typing import Any

import numpy as np
import torch

from core.families import Family
from core.groups import Architecture
from core.measured import Importance
from core.windows import TokenWindows
from importance.input_norms import InputSquares
from importance.over_windows import over_windows
from importance.passes import Forward
from importance.sums import group_sums
from importance.tally import Tally


@torch.no_grad()
def wanda_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    batch_size: int | None = None,
) -> Importance:
    """float64 (G,). Halves are norms over half the tokens, so both are smaller, all groups alike.

    Raises NumericalError when more than 5 % of the windows yield NaN or Inf.
    """
    norms = _WeightedNorms(model, family, architecture)
    run, name = Forward(model), "importance (wanda)"
    tally = over_windows(model, windows, run, norms, batch_size=batch_size, description=name)
    return Importance(
        values=norms.values,
        criterion="wanda",
        gradients=None,
        windows_used=tally.used,
        windows_skipped=tally.skipped,
        halves=norms.halves if all(tally.windows) else None,
    )


class _WeightedNorms(InputSquares):
    """values float64 (G,), halves float64 (2, G)."""

    def __init__(self, model: Any, family: Family, architecture: Architecture) -> None:
        super().__init__(model, family)
        self.architecture = architecture
        self.values = np.zeros(len(architecture.groups))
        self.halves = np.zeros((2, len(self.values)))

    def finish(self, layer: int, tally: Tally) -> None:
        shape = self.architecture.layers[layer]
        for member, module in self.of_layer(layer):
            rows, weight = self.architecture.groups.rows(layer, member.kind), module.weight.float().abs().sum(0)
            total, even = self.total[layer, member.kind], self.even[layer, member.kind]
            odd = (total - even).clamp_min(0.0)
            for target, sums in ((self.values, total), (self.halves[0], even), (self.halves[1], odd)):
                target[rows] = group_sums(member, shape, weight * sums.sqrt()).cpu().numpy()
