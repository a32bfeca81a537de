"""Recovery block by block: the narrow model is trained by gradients to keep the dense model's residual stream.

Layer by layer, attention first, the parameters that a block is made of (projections, norms, biases) are moved so that
the stream behind the block comes back to the dense one. With h the stream behind a block, over tokens t,

    loss = Σ_t ‖h_t - h_dense,t‖² / mean(h_dense,t²)

which is the closed-form repair's target (``pruning.repair_targets``, ``stream``) with the block's nonlinearity inside:
each block makes up for what those before it left. Its inputs come from the prefix as it is, cut, repaired, recovered.
A step is Adam's on float32 masters; its size is a share of each tensor's own root mean square, so that it suits a model
of any width. Windows that no step sees decide how many steps count, and whether a block changes at all.

One block and its optimiser at a time: of the two models only one layer each has to be where it computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
import torch

from core import ranks
from core.batching import with_batch_that_fits
from core.carrier import Stream
from core.determinism import is_refusal, only_deterministic
from core.errors import NumericalError, UsageError, reason_of
from core.families import Family
from core.kinds import TABLE
from core.plan import PruningPlan
from core.precision import half_of, name_of, pay_on_this_cpu, products_of
from core.progress import tqdm
from core.say import note
from core.windows import TokenWindows
from pruning.recovery.report import BlocksReport, RecoveredBlock
from pruning.repair_targets import one_over_mean_square
from pruning.repair_windows import RepairWindows
from pruning.streams import Block, LayerRunner


@dataclass(frozen=True)
class BlockSettings:
    """How to recover block by block.

    text: as of the repair, ``mixed`` or ``calibration``. batch_size: windows at once; None: as many as are fast and
    fit. stored_dtype: weights are rounded to what they will be saved in before they are judged; None: their own.
    seed: of the order of windows. rate: a step over the root mean square of the tensor it moves; it falls to 0 by a
    half cosine. steps: at most, a block. step_tokens: tokens a step. check_every: steps between two looks at the
    windows that are held out; patience: looks without a gain that end a block.
    """

    text: str = "mixed"
    batch_size: int | None = None
    stored_dtype: torch.dtype | None = None
    seed: int = 0
    rate: float = 0.02
    steps: int = 100
    step_tokens: int = 3072
    check_every: int = 25
    patience: int = 3


def recover_blocks(
    small: Any,
    dense: Any,
    family: Family,
    plan: PruningPlan,
    windows: TokenWindows,
    settings: BlockSettings | None = None,
) -> BlocksReport:
    """Train ``small``, cut from ``dense`` by ``plan``, in place. Layers that lost nothing keep their weights.

    dense is only read. windows: calibration; every fourth (the last of fewer) is held out. Both models stay frozen.
    Raises UsageError with fewer than two windows, NumericalError where a stream holds NaN or Inf.
    """
    if len(windows) < 2:
        raise UsageError(
            "--recover blocks holds one window out to decide by: --num_samples 1 is too few, use 2 or more"
        )
    work = BlockwiseRecovery(small, dense, family, plan, windows, settings or BlockSettings())
    count = plan.architecture.num_layers
    for layer in tqdm(work.dense.visit(), total=count, desc="recover", unit="layer", leave=False):
        work.layer(layer)
    return work.report()


def training_bytes(small: Any, family: Family) -> int:
    """What the optimiser of a block takes, at most: gradients, their sum, masters, two moments and the best so far."""
    layers = small.get_submodule(family.layers)
    return max(sum(4 * 6 * parameter.numel() for parameter in layer.parameters()) for layer in layers)


class BlockwiseRecovery:
    """Both models' streams, (N, T, C), of this process's windows, and the blocks so far."""

    def __init__(
        self,
        small: Any,
        dense: Any,
        family: Family,
        plan: PruningPlan,
        windows: TokenWindows,
        settings: BlockSettings,
    ) -> None:
        self.plan, self.settings = plan, settings
        self.text = RepairWindows.of(windows.ids, settings.text, plan.architecture)
        self.windows = self.text.shared_out()
        self.small, self.dense = (
            LayerRunner(model, family, self.windows.ids, settings.batch_size) for model in (small, dense)
        )
        self.visited = iter(self.small.visit())
        self.order = torch.Generator().manual_seed(settings.seed)
        self.same_order = True  # whether gradients are added up in one order from run to run
        self.parted = False
        self.halves = pay_on_this_cpu(small, self.small.device, settings.stored_dtype)
        self.products = half_of(self.small.device) if self.halves else small.dtype
        with torch.no_grad():
            self.aim = self.dense.embed(copies=2)
            self.stream = self.dense.copy_of(self.aim)
        self.blocks: list[RecoveredBlock] = []

    def layer(self, index: int) -> None:
        """Recover layer ``index`` of the dense model and carry both streams past it."""
        if index in self.plan.removed_layers:
            self.parted = True
            with torch.no_grad():
                self.dense.advance(index, self.aim)
            return
        whole = bool(self.plan.keep[self.plan.groups.layer == index].all())
        position = next(self.visited)
        for dense_block, block in zip(self.dense.blocks(index), self.small.blocks(position), strict=True):
            with torch.no_grad():
                self.dense.advance_block(dense_block, self.aim)
            kept_whole = self.plan.keeps_whole(index, block.kind)
            self.parted |= not kept_whole
            if self.parted and not whole:
                self._recover(block, index)
            with torch.no_grad():
                self.small.advance_block(block, self.stream)
        self.small.engine.changed(self.small.layers[position].modules())

    def report(self) -> BlocksReport:
        return BlocksReport(
            windows_fitted=self.text.num_fitted,
            windows_shuffled=self.text.num_shuffled,
            windows_held_out=len(self.text.check),
            rate=self.settings.rate,
            step_tokens=self.settings.step_tokens,
            blocks=tuple(self.blocks),
            products=name_of(self.products),
        )

    def _recover(self, block: Block, index: int) -> None:
        """Train one block; ``stream`` is the one before it, ``aim`` the dense one behind it."""
        settings = self.settings
        trained = _Trained(self._parameters_of(block), settings)
        curve = [self._error(block)]
        if not np.isfinite(curve[0]):
            raise NumericalError(f"the recovery of layer {index} met NaN or Inf; try --dtype float32")
        best, best_at = trained.values(), 0
        for step, rows in zip(range(1, settings.steps + 1), self._batches(), strict=False):
            trained.step(self._gradients_of_all(block, trained.parameters, rows), (step - 1) / settings.steps)
            if step % settings.check_every == 0 or step == settings.steps:
                with trained.as_stored():
                    curve.append(self._error(block))
                if curve[-1] < curve[best_at]:
                    best, best_at = trained.values(), len(curve) - 1
                elif len(curve) - 1 - best_at >= settings.patience:
                    break
        trained.set(best)
        steps = min(best_at * settings.check_every, settings.steps)
        name = TABLE[block.kind].name
        self.blocks.append(RecoveredBlock(index, name, best_at > 0, steps, curve[0], curve[best_at], tuple(curve)))

    def _parameters_of(self, block: Block) -> list[torch.nn.Parameter]:
        """Of the block's layer, those that the stream behind the block depends on."""
        layer = self.small.layers[block.layer]
        candidates = [parameter for parameter in layer.parameters() if parameter.is_floating_point()]
        first = torch.tensor([0] * ranks.is_first())
        found = [gradient is not None for gradient in self._gradients(block, candidates, first)]
        return list(compress(candidates, ranks.from_first(found, "what is trained")))

    def _batches(self) -> Iterator[torch.Tensor]:
        """Numbers of the windows of each step, for ever: all that are fitted, in another order each time round. Several
        processes go by the same numbers."""
        count = len(self.text.fit)
        size = min(count, max(1, self.settings.step_tokens // self.small.ids.shape[1]))
        while True:
            yield from torch.randperm(count, generator=self.order)[: count // size * size].split(size)

    def _gradients_of_all(
        self, block: Block, parameters: list[torch.nn.Parameter], rows: torch.Tensor
    ) -> list[torch.Tensor]:
        """Of the loss summed over the windows of a step, each run by the process that has it."""
        share = ranks.share(len(self.text.fit))
        mine = rows[(rows >= share.start) & (rows < share.stop)] - share.start
        found = zip(self._gradients(block, parameters, mine), parameters, strict=True)
        gradients = [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in found]
        ranks.add_up(gradients, "gradients")
        return gradients

    def _gradients(
        self, block: Block, parameters: list[torch.nn.Parameter], rows: torch.Tensor
    ) -> list[torch.Tensor | None]:
        """Of the loss summed over these windows; None for what takes no part. Windows go through a few at a time."""
        total: list[torch.Tensor | None] = [None] * len(parameters)
        done = 0
        while done < len(rows):
            left = rows[done:]
            attempt = partial(self._gradients_of, block, parameters, left)
            found, self.small.size = with_batch_that_fits(attempt, self.small.size, fixed=self.small.fixed)
            total = [new if old is None or new is None else old + new for old, new in zip(total, found, strict=True)]
            done += self.small.size
        return total

    def _gradients_of(
        self, block: Block, parameters: list[torch.nn.Parameter], rows: torch.Tensor, count: int
    ) -> list[torch.Tensor | None]:
        """The same over the first ``count`` of these windows at once."""
        loss = partial(self._loss, block, rows[:count])
        try:
            with (
                only_deterministic(self.small.device, self.same_order),
                torch.enable_grad(),
                _open(parameters),
                products_of(self.small.device, self.halves),
            ):
                return list(torch.autograd.grad(loss().sum(), parameters, allow_unused=True))
        except RuntimeError as error:
            if not (self.same_order and is_refusal(error)):
                raise
            self.same_order = False
            note(f"recovered weights differ in their last digits from run to run: {reason_of(error, 160)}")
        return self._gradients_of(block, parameters, rows, count)

    def _loss(self, block: Block, rows: slice | torch.Tensor) -> torch.Tensor:
        """float32 (B, T): of every token of these windows."""
        aim = self._windows_of(self.aim, rows).float()
        behind = self.small.through(block, self._windows_of(self.stream, rows)).stream.float()
        return (one_over_mean_square(aim) * (behind - aim).square()).sum(-1)

    def _windows_of(self, stream: Stream, rows: slice | torch.Tensor) -> torch.Tensor:
        """(B, T, C) on the device; rows: consecutive windows, or any."""
        if isinstance(rows, slice):
            return self.small.take(stream, rows)
        if isinstance(stream, torch.Tensor) and stream.device == self.small.device:
            return stream[rows.to(stream.device)]
        # Beside a GPU what was put there may still be under way: the device takes it in order, indexing here would not.
        return torch.cat([self.small.take(stream, slice(row, row + 1)) for row in rows.tolist()])

    @torch.no_grad()
    def _error(self, block: Block) -> float:
        """Over the windows held out, mean over tokens of ‖h - h_dense‖² / ‖h_dense‖²."""
        total = torch.zeros((), dtype=torch.float64, device=self.small.device)

        def step(rows: slice) -> None:
            total.add_(self._loss(block, rows).double().sum())

        self.small.in_batches(step, self.windows.check)
        ranks.add_up([total], "error")
        tokens = len(self.text.check) * self.small.ids.shape[1]
        return float(total) / (tokens * self.aim.shape[-1])


class _Trained:
    """Parameters of one block, their float32 masters, and Adam."""

    def __init__(self, parameters: list[torch.nn.Parameter], settings: BlockSettings) -> None:
        self.parameters, self.stored = parameters, settings.stored_dtype
        self.masters = [parameter.detach().float().clone() for parameter in parameters]
        self.rates = [settings.rate * _size_of(master) for master in self.masters]
        groups = [{"params": [master], "lr": rate} for master, rate in zip(self.masters, self.rates, strict=True)]
        self.adam = torch.optim.Adam(groups)

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor], part: float) -> None:
        """part: of all steps, those before this one; in [0, 1)."""
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient.float()
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * part))
        self.adam.step()
        self.set(self.masters)

    def values(self) -> list[torch.Tensor]:
        """What the parameters would be saved as."""
        return [master.detach().to(self.stored or parameter.dtype, copy=True) for master, parameter in self._pairs()]

    @torch.no_grad()
    def set(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @contextmanager
    def as_stored(self) -> Iterator[None]:
        self.set(self.values())
        try:
            yield
        finally:
            self.set(self.masters)

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.nn.Parameter]]:
        return zip(self.masters, self.parameters, strict=True)


def _size_of(tensor: torch.Tensor) -> float:
    """Its root mean square, 1e-3 at least: a bias that is zero may move too."""
    return max(float(tensor.square().mean().sqrt()), 1e-3)


@contextmanager
def _open(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters take gradients."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.requires_grad_(was)
