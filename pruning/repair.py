"""Repair after selection: refit the projections of every block, layer by layer, to what the dense model computes.

The repair goes through the model once, before surgery. A removed group is a set of columns of o_proj or down_proj, so
the model is repaired by zeroing those and rewriting the others (``pruning.refit``); surgery then cuts the zeros away.
The inputs of a block come from the prefix as it already is, pruned and repaired; what its output should be says
``pruning.repair_targets``.

What the refitted blocks before could not make up for is left in the stream, and part of it follows from the rest. So
modules ``all`` first refits what reads the stream (q, k, v, gate, up) to what it would give on the dense stream, from
what it now reads; rows of removed groups are left alone. Without the dense stream (target ``pruned``) there is nothing
to refit them to.

Which λ, and whether weights change at all, is decided on windows that no refit sees (``pruning.repair_windows``).

Both streams are carried block by block, by several processes each for its share of the windows. The dense one passes a
block once. The pruned one passes it once too, as far as the module that writes to the stream: that module's inputs are
kept until it is refitted, or computed again where there is no room for them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from core import ranks
from core.batching import with_what_gives_way
from core.carrier import Stream
from core.engine import engine_of
from core.errors import NumericalError, UsageError
from core.families import IN, Family, Member, member_rows
from core.kinds import TABLE
from core.narrowed import narrowed, narrows
from core.plan import PruningPlan
from core.products import product
from core.progress import tqdm
from core.windows import TokenWindows
from pruning.moments import InputMoments, Moments, bytes_to_solve
from pruning.refit import Choice, choose
from pruning.repair_report import INPUT, OUTPUT, RepairedBlock, RepairReport
from pruning.repair_targets import TARGETS, Seen
from pruning.repair_windows import RepairWindows
from pruning.streams import Block, LayerRunner

S = TypeVar("S", Moments, InputMoments)
AsDense = Callable[[], AbstractContextManager[None]]
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class RepairSettings:
    """How to repair.

    target: ``stream``, ``dense`` or ``pruned``. text: ``mixed`` adds windows of shuffled tokens, ``calibration`` none.
    modules: ``all``, or ``outputs`` alone. batch_size: windows at once; None: as many as are fast and fit.
    stored_dtype: refitted weights are rounded to what they will be saved in; None: their own. ridges: λ to try.
    """

    target: str = "stream"
    text: str = "mixed"
    modules: str = "all"
    batch_size: int | None = None
    stored_dtype: torch.dtype | None = None
    ridges: tuple[float, ...] = RIDGES

    @property
    def refits(self) -> str:
        """The modules that are refitted; without the dense stream there is nothing to refit what reads it to."""
        return self.modules if TARGETS[self.target].needs_dense else "outputs"


DEFAULT = RepairSettings()


@torch.no_grad()
def repair(
    model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, settings: RepairSettings = DEFAULT
) -> RepairReport:
    """Rewrite the projections of ``model`` in place (of a streamed one: beside its checkpoint), all columns of removed
    groups zero; the rest is left alone.

    windows: calibration; every fourth (the last of fewer) is held out of the refits. A layer that loses nothing keeps
    its weights, frozen or not. Removed layers pass the stream on. About one pass over all windows for each stream,
    two for the pruned one where memory is short.
    Raises UsageError with fewer than two windows, NumericalError where a stream holds NaN or Inf.
    """
    if len(windows) < 2:
        raise UsageError("--reconstruct holds one window out to decide by: --num_samples 1 is too few, use 2 or more")
    work = LayerwiseRepair(model, family, plan, windows, settings)
    layers = plan.architecture.num_layers
    for layer in tqdm(work.runner.visit(), total=layers, desc="repair", unit="layer", leave=False):
        work.layer(layer)
    return work.report()


@contextmanager
def repaired_for_now(
    model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, settings: RepairSettings = DEFAULT
) -> Iterator[RepairReport]:
    """Inside, ``repair`` has been done; afterwards the weights are what they were."""
    touched = [
        parameter
        for layer in model.get_submodule(family.layers)
        for member in family.members
        if settings.refits == "all" or member.axis == IN
        for parameter in layer.get_submodule(member.path).parameters()
    ]
    with engine_of(model).restoring(touched):
        yield repair(model, family, plan, windows, settings)


class LayerwiseRepair:
    """The two streams, (N, T, C), of this process's windows, and the blocks so far.

    ``dense`` is ``pruned`` itself until the first block changes, and None where the target needs no dense stream.
    """

    def __init__(
        self, model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, settings: RepairSettings
    ) -> None:
        self.plan, self.settings, self.target = plan, settings, TARGETS[settings.target]
        self.text = RepairWindows.of(windows.ids, settings.text, plan.architecture)
        self.windows = self.text.shared_out()
        self.runner = LayerRunner(model, family, self.windows.ids, settings.batch_size)
        self.pruned = self.runner.embed(copies=2 if self.target.needs_dense else 1)
        self.dense = self.pruned if self.target.needs_dense else None
        self.blocks: list[RepairedBlock] = []

    def layer(self, index: int) -> None:
        """Repair layer ``index`` and carry both streams past it."""
        if index in self.plan.removed_layers:
            self._part()
            if self.dense is not None:
                self.runner.advance(index, self.dense)
        elif self.plan.keep[self.plan.groups.layer == index].all():
            for stream in self._streams():
                self.runner.advance(index, stream)
        else:
            for block in self.runner.blocks(index):
                self._block(block)

    def report(self) -> RepairReport:
        return RepairReport(
            target=self.settings.target,
            modules=self.settings.refits,
            ridges=self.settings.ridges,
            windows_fitted=self.text.num_fitted,
            windows_shuffled=self.text.num_shuffled,
            windows_held_out=len(self.text.check),
            blocks=tuple(self.blocks),
        )

    @property
    def _alike(self) -> bool:
        return self.dense is self.pruned

    def _streams(self) -> list[Stream]:
        """Those that differ."""
        return [self.pruned] if self.dense is None or self._alike else [self.dense, self.pruned]

    def _put_streams_away(self) -> None:
        """They rest in memory of the CPU from now on."""
        alike, self.pruned = self._alike, self.runner.away(self.pruned)
        self.dense = self.pruned if alike else None if self.dense is None else self.runner.away(self.dense)

    def _part(self) -> None:
        """From here on the pruned stream is another than the dense one."""
        if self._alike:
            self.pruned = self.runner.copy_of(self.pruned)

    def _block(self, block: Block) -> None:
        """Repair one block and carry both streams past it."""
        kept = self._positions(block, block.writer)
        whole = len(kept) == self._module(block, block.writer).in_features
        if whole and (self._alike or self.dense is None):
            self.runner.advance_block(block, self.pruned)
            return
        readers = [self._module(block, member) for member in block.readers]
        dense_weights = [module.weight for module in readers]
        if self.settings.refits == "all" and self.dense is not None and not self._alike:
            dense_weights = [weight.clone() for weight in dense_weights]
            self._refit_readers(block, self.dense)
        as_dense = partial(_weights, readers, dense_weights)
        inputs = self._refit_writer(block, kept, as_dense)
        self.runner.engine.changed([*readers, self._module(block, block.writer)])
        self._advance_pruned(block, kept, inputs)

    def _refit_readers(self, block: Block, dense: Stream) -> None:
        """Refit what reads the stream in one block to what it gave on the dense one; rows of removed groups stay."""
        modules = [self._module(block, member) for member in block.readers]
        rows = [self._positions(block, member) for member in block.readers]
        weight = torch.cat([module.weight[kept] for module, kept in zip(modules, rows, strict=True)])

        def step(moments: InputMoments, batch: slice) -> None:
            x, k = (self.runner.read(block, self.runner.take(stream, batch)) for stream in (dense, self.pruned))
            moments.add(x.flatten(0, 1), k.flatten(0, 1))

        sums = [InputMoments(weight.shape[1], weight.device, judge=judge) for judge in (False, True)]
        fit, check = (moments.seen_by(weight) for moments in self._over_windows(sums, step))
        solve = partial(self._choose, block, INPUT, fit, check, weight, None)
        choice = with_what_gives_way(solve, [self._put_streams_away])
        for module, kept, values in zip(modules, rows, choice.weight.split([len(r) for r in rows]), strict=True):
            module.weight[kept] = values

    def _refit_writer(self, block: Block, kept: torch.Tensor, as_dense: AsDense) -> torch.Tensor | None:
        """Refit what writes to the stream and carry the dense stream past the block, whose readers are the dense ones
        inside ``as_dense()``; returns the inputs that are left to the module in the pruned stream, (N, T, n), or None
        where they had no room."""
        module = self._module(block, block.writer)
        inputs = self.runner.room_for(len(kept), beside=bytes_to_solve(module.out_features, len(kept)))
        left, bias = module.weight[:, kept], 0.0 if module.bias is None else module.bias.float()
        alike = self._alike
        self._part()

        def step(moments: Moments, rows: slice) -> None:
            k, seen = self._seen(block, kept, rows, as_dense, alike=alike)
            y = self.target.of(seen).flatten(0, 1)
            weight = self.target.token_weight(seen)
            tokens = k.flatten(0, 1)
            lack = y - (product(tokens, left.T, left.dtype) + bias)
            moments.add(tokens, lack, y, None if weight is None else weight.flatten(0, 1))
            if inputs is not None:
                self.runner.put(inputs, rows, k)
            if self.dense is not None:
                self.runner.put(self.dense, rows, seen.dense_behind)

        shape, biased = (module.out_features, len(kept), left.device), module.bias is not None
        sums = [Moments(*shape, bias=biased, judge=judge) for judge in (False, True)]
        fit, check = self._over_windows(sums, step)

        def forget_inputs() -> None:
            nonlocal inputs
            inputs = None

        solve = partial(self._choose, block, OUTPUT, fit, check, left, module.bias)
        choice = with_what_gives_way(solve, [forget_inputs, self._put_streams_away])
        module.weight.zero_()
        module.weight[:, kept] = choice.weight
        if module.bias is not None and choice.bias is not None:
            module.bias.copy_(choice.bias)
        return inputs

    def _seen(
        self, block: Block, kept: torch.Tensor, rows: slice, as_dense: AsDense, *, alike: bool
    ) -> tuple[torch.Tensor, Seen]:
        """What is left to the writing module in the pruned stream, (B, T, n), and what the target is made of.

        alike: nothing before this block changed, so the two streams give the same."""
        pruned = self.runner.take(self.pruned, rows)
        dense = pruned if self.dense is None or alike else self.runner.take(self.dense, rows)
        with as_dense():
            whole = self.runner.through(block, dense)
        left = whole.inputs[..., kept] if dense is pruned else self._inputs_left(block, kept, pruned)
        return left, Seen(whole.output, dense, pruned, whole.stream, block.norm)

    def _inputs_left(self, block: Block, kept: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """What the writing module receives of the groups that stay, (B, T, n); the others are not even computed where
        the block's modules allow for that."""
        layer, family = self.runner.layers[block.layer], self.runner.family
        keep = self.plan.keep[self.plan.groups.rows(block.layer, block.kind)]
        if not narrows(layer, family, block.kind, keep):
            return self.runner.inputs(block, before)[..., kept]
        with narrowed(layer, family, self.plan.architecture.layers[block.layer], block.kind, keep):
            return self.runner.inputs(block, before)

    def _advance_pruned(self, block: Block, kept: torch.Tensor, inputs: torch.Tensor | None) -> None:
        if inputs is None:
            self.runner.advance_block(block, self.pruned)
            return
        module = self._module(block, block.writer)
        weight = module.weight[:, kept]

        def step(rows: slice) -> None:
            output = F.linear(inputs[rows], weight, module.bias)
            stream = self.runner.behind(block, self.runner.take(self.pruned, rows), output)
            self.runner.put(self.pruned, rows, stream)

        self.runner.in_batches(step)

    def _choose(
        self,
        block: Block,
        side: str,
        fit: Moments,
        check: Moments,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> Choice:
        """Raises NumericalError where the sums are not finite."""
        if not (fit.finite and check.finite):
            raise NumericalError(f"the repair of layer {block.layer} met NaN or Inf; try --dtype float32")
        settings = self.settings
        choice = choose(fit, check, weight, bias, ridges=settings.ridges, stored_dtype=settings.stored_dtype)
        errors = choice.error_before, choice.error_after
        changed = choice.ridge is not None
        self.blocks.append(RepairedBlock(block.layer, TABLE[block.kind].name, side, changed, choice.ridge, *errors))
        return choice

    def _over_windows(self, sums: list[S], step: Callable[[S, slice], None]) -> list[S]:
        """The first of the two over fitted windows, the second over held-out ones; of all processes together."""
        for moments, windows in zip(sums, (self.windows.fit, self.windows.check), strict=True):
            self.runner.in_batches(partial(step, moments), windows)
            ranks.add_up(moments.sums(), "repair")
        return sums

    def _module(self, block: Block, member: Member) -> Any:
        return self.runner.layers[block.layer].get_submodule(member.path)

    def _positions(self, block: Block, member: Member) -> torch.Tensor:
        """Along the member's axis, of the groups that stay; int64 on the device."""
        shape, groups = self.plan.architecture.layers[block.layer], self.plan.kept(block.layer, block.kind)
        return torch.from_numpy(member_rows(member, shape, groups)).to(self.runner.device)


@contextmanager
def _weights(modules: list[Any], weights: list[torch.Tensor]) -> Iterator[None]:
    """Inside, the modules compute with these weights; nothing is copied."""
    own = [module.weight.data for module in modules]
    try:
        for module, weight in zip(modules, weights, strict=True):
            module.weight.data = weight.data
        yield
    finally:
        for module, weight in zip(modules, own, strict=True):
            module.weight.data = weight
