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
    inputs = InputSquares(model, family)
    run, name = Forward(model), "importance (wanda)"
    tally = over_windows(model, windows, run, inputs, batch_size=batch_size, description=name)
    values = np.zeros(len(architecture.groups))
    halves = np.zeros((2, len(values)))
    for layer, member, module in inputs.outputs:
        rows, weight = architecture.groups.rows(layer, member.kind), module.weight.float().abs().sum(0)
        total, even = inputs.total[layer, member.kind], inputs.even[layer, member.kind]
        for target, sums in ((values, total), (halves[0], even), (halves[1], (total - even).clamp_min(0.0))):
            target[rows] = group_sums(member, architecture.layers[layer], weight * sums.sqrt()).cpu().numpy()
    return Importance(
        values=values,
        criterion="wanda",
        gradients=None,
        windows_used=tally.used,
        windows_skipped=tally.skipped,
        halves=halves if all(tally.windows) else None,
    )
