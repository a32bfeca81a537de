"""What the model loses when single blocks are narrowed, each alone.

    Delta_b(keep) = NLL(block b without the groups that keep leaves out, all else whole) - NLL(dense), nats per token

Measured from the input that the block's layer had in the dense pass (``prefixes``): 2 L blocks cost about L passes over
the windows. The windows are calibration text that importance did not see.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.batching import for_each_batch
from core.errors import NumericalError
from core.families import Family
from core.groups import KINDS, Architecture
from core.silence import silenced
from core.windows import TokenWindows
from importance.measuring import left_as_found
from importance.prefixes import PrefixedLoss


class TimeUpError(Exception):
    """The measurement was told that it takes too long; nothing of it is left."""


@torch.no_grad()
def measure_block_losses(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    keep: np.ndarray,
    *,
    batch_size: int | None = None,
    description: str = "blocks",
    is_late: Callable[[], bool] | None = None,
) -> np.ndarray:
    """float64 (L, 2): Delta of every block at its part of ``keep``, bool (G,); 0 where nothing of it goes.

    is_late: asked before every variant; once it says so the measurement ends with TimeUpError, as blocks would not be
    comparable. The model is left as found. Raises NumericalError where a loss is NaN or Inf.
    """
    groups = architecture.groups
    wanted = [
        (layer, kind)
        for layer in range(architecture.num_layers)
        for kind in range(len(KINDS))
        if not keep[groups.rows(layer, kind)].all()
    ]
    device = next(model.parameters()).device
    total = np.zeros((architecture.num_layers, len(KINDS)))
    with left_as_found(model):
        loss = PrefixedLoss(model, family)

        def step(batch: np.ndarray) -> None:
            ids = torch.from_numpy(batch).to(device)
            dense, found = loss.dense_pass(ids), np.zeros_like(total)
            for layer, kind in wanted:
                if is_late is not None and is_late():
                    raise TimeUpError
                part, shape = keep[groups.rows(layer, kind)], architecture.layers[layer]
                with loss.starting_at(layer), silenced(loss.layers[layer], family, shape, kind, part):
                    found[layer, kind] = loss.nll(ids) - dense
            np.add(total, found, out=total)  # at the end: a batch that fails half way comes again

        if wanted:
            for_each_batch(windows.ids, step, batch_size, description)
    bad = np.argwhere(~np.isfinite(total))
    if len(bad):
        layer, kind = bad[0]
        raise NumericalError(f"the loss without part of layer {layer} {KINDS[kind]} is NaN or Inf; try --dtype float32")
    return total / (len(windows) * (windows.seq_len - 1))
