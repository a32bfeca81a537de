"""Importance for a repair that follows: what a group costs once least squares has refitted the rest of its block.

Removing the groups S of a block and giving ``o_proj`` or ``down_proj`` the weight W' on its other inputs changes the
loss, to second order and in K-FAC's approximation, by half of

    sum_d g_d E_t[ ((W - W') x_t)_d^2 ] = tr( diag(g) (W - W') H (W - W')^T )     (H and g: ``moments``)

With the best W' that is the optimal brain surgeon's error of V = g^1/2 W (``elimination``). Inside each block groups
are removed greedily, the one whose removal adds least first, with a refit after each. Costs of all blocks are in one
unit, nats^2 a token, and compare without normalisation. Their sequence in each block is made convex, so that the global
ranking by importance per parameter is the greedy allocation of the budget by marginal cost per parameter; I_g is the
convex cost of g, tiny steps keep pooled groups in the order of removal.

A one-by-one criterion calls two channels that carry the same signal dispensable, both of them, or neither; this
one lets the first go for nothing and charges the second with the signal.
"""

from typing import Any

import numpy as np
import torch

from core import ranks
from core.families import Family
from core.groups import Architecture
from core.measured import Importance
from core.windows import TokenWindows
from importance.elimination import eliminate, in_order
from importance.obs_moments import LayerMoments, MomentMeter, enough_memory


def obs_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    batch_size: int | None = None,
    most_bytes: int | None = None,
) -> Importance:
    """Measure the moments, remove every block's groups one after another, and price them. float64 (G,), all >= 0.

    ``halves`` are priced the same, where the meter holds both halves' moments. ``values`` depend neither on batch_size
    nor on most_bytes (memory for moments, ``MomentMeter``), beyond rounding. One layer is solved at a time, in float64
    on its own device; several processes deal out what is to be solved. Raises NumericalError when more than 5 % of the
    windows yield NaN or Inf, UsageError when memory does not suffice.
    """
    meter = MomentMeter(model, family, architecture, windows, batch_size=batch_size, most_bytes=most_bytes, halves=True)
    layers = model.get_submodule(family.layers)
    values = np.zeros(len(architecture.groups))
    halves = np.zeros((2, len(values)))
    for moments in meter:
        sets = [(moments, values), *zip(moments.halves, halves, strict=False)]
        with enough_memory(architecture, range(moments.layer, moments.layer + 1)):
            for number, (of_set, prices) in enumerate(sets, moments.layer * len(sets)):
                if not ranks.has(number):
                    continue
                for kind, path in enumerate((family.attention_output, family.mlp_output)):
                    rows = architecture.groups.rows(moments.layer, kind)
                    weight = layers[moments.layer].get_submodule(path).weight
                    prices[rows] = _block(of_set, kind, weight, rows.stop - rows.start)
    ranks.add_up([torch.from_numpy(values), torch.from_numpy(halves)], "prices (obs)")
    return Importance(
        values=values,
        criterion="obs",
        gradients=meter.gradient_statistics(),
        windows_used=meter.windows_used,
        windows_skipped=meter.windows_skipped,
        halves=halves if meter.has_halves else None,
    )


def _block(moments: LayerMoments, kind: int, weight: torch.Tensor, groups: int) -> np.ndarray:
    inputs, outputs = moments.inputs[kind], outputs_weighted(moments.outputs[kind], weight)
    return in_order(eliminate(inputs, outputs, weight.shape[1] // groups))


@torch.no_grad()
def outputs_weighted(outputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float64 (C, n): V = g^1/2 W, so that V^T V = W^T diag(g) W. outputs: float64 (C,), g."""
    return outputs.sqrt()[:, None] * weight.detach().double()
