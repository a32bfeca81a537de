"""What the model loses when single blocks are narrowed, each alone.

    Delta_b(keep) = NLL(block b without the groups that keep leaves out, all else whole) - NLL(dense), nats per token

Measured from the input that the block's layer had in the dense pass (``prefixes``): the blocks of L layers cost about L
passes over the windows. The windows are calibration text that importance did not see.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.batching import for_each_batch
from core.errors import NumericalError
from core.families import Family
from core.groups import Architecture
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
    """float64 (L, kinds): Delta of every block (``GroupTable.spread``) at its part of ``keep``, bool (G,); 0 where
    nothing of it goes.

    is_late: asked before every variant; once it says so the measurement ends with TimeUpError, as blocks would not be
    comparable. The model is left as found. Raises NumericalError where a loss is NaN or Inf.
    """
    groups = architecture.groups
    wanted = np.flatnonzero(groups.by_block(~keep) > 0).tolist()
    device = next(model.parameters()).device
    total = np.zeros(groups.num_blocks)
    with left_as_found(model):
        loss = PrefixedLoss(model, family)

        def step(batch: np.ndarray) -> None:
            ids = torch.from_numpy(batch).to(device)
            dense, found = loss.dense_pass(ids), np.zeros_like(total)
            for block in wanted:
                if is_late is not None and is_late():
                    raise TimeUpError
                layer, kind = int(groups.block_layer[block]), int(groups.block_kind[block])
                part, shape = keep[groups.rows_of(block)], architecture.layers[layer]
                with loss.starting_at(layer), silenced(loss.layers[layer], family, shape, kind, part):
                    found[block] = loss.nll(ids) - dense
            np.add(total, found, out=total)  # at the end: a batch that fails half way comes again

        if wanted:
            for_each_batch(windows.ids, step, batch_size, description)
    bad = np.flatnonzero(~np.isfinite(total))
    if len(bad):
        name = groups.block_name(bad[0])
        raise NumericalError(f"the loss without part of {name} is NaN or Inf; try --dtype float32")
    return groups.spread(total / (len(windows) * (windows.seq_len - 1)))
