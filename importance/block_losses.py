"""What the model loses when single blocks are narrowed, each alone.

    Delta_b(keep) = NLL(block b without the groups that keep leaves out, all else whole) - NLL(dense), nats per token

Measured from the input that the block's layer had in the dense pass (``prefixes``): the blocks of L layers cost about L
passes over the windows. The windows are calibration text that importance did not see.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from core.engine import engine_of
from core.errors import NumericalError
from core.families import Family
from core.groups import Architecture
from core.silence import silenced
from core.windows import TokenWindows
from importance.over_windows import Key, Measurement, TimeUpError, on_host, over_windows
from importance.passes import Batch, Forward
from importance.prefixes import PrefixedLoss


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

    is_late: asked before every variant (before every sweep, where processes sweep together); once it says so the
    measurement ends with TimeUpError, as blocks would not be comparable. The model is left as found. Raises
    NumericalError where a loss is NaN or Inf.
    """
    groups = architecture.groups
    parts = {
        (int(layer), int(kind)): keep[groups.rows(int(layer), int(kind))]
        for layer, kind in zip(groups.block_layer, groups.block_kind, strict=True)
    }
    narrowed = _NarrowedBlocks(
        model, family, architecture, {key: part for key, part in parts.items() if not part.all()}, is_late
    )
    if not narrowed.parts:
        return groups.spread(np.zeros(groups.num_blocks))
    run = Forward(model, narrowed.compare, streams=len(narrowed.parts) + 1)
    tally = over_windows(model, windows, run, narrowed, batch_size=batch_size, description=description)
    total = narrowed.losses()
    bad = np.flatnonzero(~np.isfinite(total))
    if len(bad):
        name = groups.block_name(bad[0])
        raise NumericalError(f"the loss without part of {name} is NaN or Inf; try --dtype float32")
    return groups.spread(total / (tally.used * (windows.seq_len - 1)))


class _NarrowedBlocks(Measurement):
    """parts: bool (K or F,) by block, what stays of it. total: summed NLL lost by block, nats, float64 ()."""

    def __init__(
        self,
        model: Any,
        family: Family,
        architecture: Architecture,
        parts: dict[Key, np.ndarray],
        is_late: Callable[[], bool] | None,
    ) -> None:
        together = engine_of(model).together
        self.loss = PrefixedLoss(model, family, is_late if together else None)
        self.family, self.architecture, self.parts = family, architecture, parts
        self.is_late = None if together else is_late
        self.found: dict[Key, torch.Tensor] = {}
        self.device = engine_of(model).device
        self.total = {key: torch.zeros((), dtype=torch.float64, device=self.device) for key in parts}

    def start(self, batch: Batch) -> None:
        self.found.clear()

    def compare(self, ids: torch.Tensor) -> torch.Tensor:
        variants = [(key, partial(self._narrowed, *key, part)) for key, part in self.parts.items()]
        dense, losses = self.loss.of(ids, variants)
        self.found = {key: loss - dense for key, loss in losses.items()}
        return dense

    @contextmanager
    def _narrowed(self, layer: int, kind: int, part: np.ndarray) -> Iterator[None]:
        if self.is_late is not None and self.is_late():
            raise TimeUpError
        shape, module = self.architecture.layers[layer], self.loss.layers[layer]
        with silenced(module, self.family, shape, kind, part):
            yield

    def keep(self, batch: Batch) -> None:
        for key, loss in self.found.items():
            self.total[key] += loss.to(self.device)

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        return () if layer is not None else self.total.values()

    def losses(self) -> np.ndarray:
        """float64 (B,), one entry a block; 0 where nothing of it goes."""
        groups = self.architecture.groups
        lost = np.zeros(groups.num_blocks)
        for key, (loss,) in zip(self.total, on_host([loss[None] for loss in self.total.values()]), strict=True):
            lost[groups.block_of(*key)] = loss
        return lost
