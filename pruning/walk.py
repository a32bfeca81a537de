"""Repair after selection: refit the projections of every block, layer by layer, to what the dense model computes.

The walk goes through the model once, before surgery. A removed group is a set of columns of o_proj or down_proj, so
the model is repaired by zeroing those and rewriting the others (``pruning.refit``); surgery then cuts the zeros away.
The inputs of a block come from the prefix as it already is, pruned and repaired. Its output's target is

    stream   what brings the residual stream behind the block back to the dense model's: with h the stream before the
             block and y its dense output, y + h_dense - h_pruned. Every block makes up for what those before it left.
             A token counts by 1 / mean(h^2), h the dense stream behind the block, because the norms that read the
             stream divide by it: without, a few tokens of huge norm (the first of a window) would decide alone
    dense    y, the output of the dense block on the dense stream
    pruned   the output of the dense block on the pruned stream

Families that put a norm behind o_proj and down_proj (``Family.output_norms``) change the stream by gain · y / rms(y).
Towards ``stream`` what the stream lacks is divided by that scale, taken at the dense y, before it is added to y. Their
tokens count by 1 / mean(y^2) for every target, on top of the above: the norm divides by it.

What the refitted blocks before could not make up for is left in the stream, and part of it follows from the rest. So
modules ``all`` first refits what reads the stream (q, k, v, gate, up) to what it would give on the dense stream, from
what it now reads; rows of removed groups are left alone. Without the dense stream (``pruned``) there is nothing to
refit them to.

Which λ, and whether weights change at all, is decided on windows that no refit sees.

The dense model is the teacher, so any tokens make an example. Text ``mixed`` adds to the windows that are fitted twice
as many with the same tokens in random order: inputs that the calibration text alone never shows, which other text may.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from core.errors import NumericalError
from core.families import IN, OUT, Family, Member, member_rows
from core.groups import ATTENTION, KINDS
from core.plan import PruningPlan
from core.windows import TokenWindows
from pruning.refit import Choice, InputMoments, Moments, choose
from pruning.streams import LayerRunner

S = TypeVar("S", Moments, InputMoments)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT_EVERY = 4
SHUFFLES = 2
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Repair:
    """How to repair.

    target: ``stream``, ``dense`` or ``pruned``. text: ``mixed`` adds windows of shuffled tokens, ``calibration`` none.
    modules: ``all``, or ``outputs`` alone. batch_size: windows at once; None: as many as fit. stored_dtype: refitted
    weights are rounded to what they will be saved in; None: their own. ridges: λ to choose among.
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
        return "outputs" if self.target == "pruned" else self.modules


@dataclass(frozen=True)
class RepairedBlock:
    """One side of a block: ``output``, its o_proj or down_proj, or ``input``, all projections that read the stream.

    errors: Σ ‖target - output‖² / Σ ‖target‖² on held-out windows, with sliced and with final weights; of an output
    towards ``stream`` both sums are weighted by token, and target - output is what the stream lacks behind the block.
    ridge: λ over the mean diagonal of K K^T; None where it keeps its sliced weights.
    """

    layer: int
    kind: str
    side: str
    repaired: bool
    ridge: float | None
    error_before: float
    error_after: float


def held_out_windows(num_windows: int) -> np.ndarray:
    """bool (N,): every fourth window, or the last one where there are fewer."""
    held_out = np.arange(num_windows) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    held_out[-1] |= not held_out.any()
    return held_out


def shuffled_tokens(ids: np.ndarray, times: int = SHUFFLES) -> np.ndarray:
    """int64 (times · N, T): the same tokens in random orders over all windows, but the first of each (BOS, mostly).

    The orders are those of a fixed seed, so a repair depends on its windows alone.
    """
    mixed, generator = np.tile(ids, (times, 1)), np.random.default_rng(0)
    for rows in np.split(mixed, times):
        rows[:, 1:] = generator.permutation(ids[:, 1:].reshape(-1)).reshape(ids[:, 1:].shape)
    return mixed


class Walk:
    """The two streams, and the blocks so far. ``dense`` is None where nothing but the pruned stream is needed."""

    def __init__(self, model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, how: Repair) -> None:
        self.plan, self.how = plan, how
        held_out = held_out_windows(len(windows))
        fitted = windows.ids[~held_out]
        shuffled = shuffled_tokens(fitted) if how.text == "mixed" else fitted[:0]
        ids = np.concatenate([fitted, shuffled, windows.ids[held_out]])
        self.shuffled, seen = len(shuffled), len(fitted) + len(shuffled)
        self.fitted, self.held_out = range(seen), range(seen, len(ids))
        self.runner = LayerRunner(model, family, ids, how.batch_size)
        self.norms = [_output_norms(layer, family) for layer in self.runner.layers]
        self.members = [member for member in family.members if member.axis == IN]  # attention first
        self.readers = [
            [member for member in family.members if member.axis == OUT and member.kind == output.kind]
            for output in self.members
        ]
        self.pruned = self.runner.embed()
        self.dense = self.pruned.clone() if how.target != "pruned" else None
        self.diverged = False  # the two streams are still the same
        self.blocks: list[RepairedBlock] = []

    def layer(self, index: int) -> None:
        """Repair layer ``index`` and carry both streams past it."""
        before = None if self.dense is None else self.dense.clone()
        outputs: list[torch.Tensor | None] = [None] * len(self.members)
        read: list[torch.Tensor] = []
        if self.dense is not None:
            first = [readers[0].path for readers in self.readers if self.how.refits == "all"]
            outputs[:], read = self.runner.advance(index, self.dense, [member.path for member in self.members], first)
        if index in self.plan.removed_layers:
            self.diverged = True
            return
        if not self.plan.keep[self.plan.groups.layer == index].all():
            for member, y in zip(self.members, outputs, strict=True):
                if read and self.diverged:
                    self._refit_inputs(index, member.kind, read[member.kind])
                norm = self.norms[index][member.kind]
                target, weight = y, None
                if self.how.target == "stream" and y is not None and before is not None:
                    target = self._towards_stream(index, member, y, before)
                    # The dense stream behind this block, as the model's own sum gives it.
                    before += y if norm is None else self.runner.through(norm, y)
                    weight = _one_over_mean_square(before)
                if norm is not None and y is not None:
                    weight = _one_over_mean_square(y) * (1.0 if weight is None else weight)
                self._refit_output(index, member, target, weight)
        self.runner.advance(index, self.pruned)

    def _towards_stream(self, index: int, member: Member, y: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """y + h_dense - h_pruned, float32 (N, T, C), with ``before`` the dense stream that enters the block."""
        if not self.diverged:
            return y
        here = self.pruned if member.kind == ATTENTION else self.runner.between(index, self.pruned)
        lack = before.float() - here.float()
        norm = self.norms[index][member.kind]
        return y.float() + (lack if norm is None else _before_norm(norm, y, lack))

    def _refit_inputs(self, index: int, kind: int, dense: torch.Tensor) -> None:
        """Refit what reads the stream in one block to what it gave on ``dense`` (N, T, C), its inputs in the dense
        stream; rows of removed groups stay as they are."""
        readers, layer = self.readers[kind], self.runner.layers[index]
        shape, groups = self.plan.architecture.layers[index], self.plan.kept(index, kind)
        modules = [layer.get_submodule(member.path) for member in readers]
        rows = [torch.from_numpy(member_rows(member, shape, groups)).to(self.runner.device) for member in readers]
        weight = torch.cat([module.weight[kept] for module, kept in zip(modules, rows, strict=True)])

        def step(moments: InputMoments, batch: slice) -> None:
            k = self.runner.input_of(readers[0].path, index, self.pruned, batch).float().flatten(0, 1)
            moments.add(_tokens(dense, batch, k), k)

        sums = self._over_windows([InputMoments(weight.shape[1], weight.device) for _ in range(2)], step)
        fit, held_out = (moments.behind(weight) for moments in sums)
        choice = choose(fit, held_out, weight, None, ridges=self.how.ridges, stored_dtype=self.how.stored_dtype)
        self._note(index, kind, INPUT, choice, fit.lack_energy)
        new = choice.weight.split([len(kept) for kept in rows])
        for module, kept, values in zip(modules, rows, new, strict=True):
            module.weight[kept] = values

    def _note(self, index: int, kind: int, side: str, choice: Choice, lack: float) -> None:
        if not np.isfinite([lack, choice.error_before]).all():
            raise NumericalError(f"the repair of layer {index} met NaN or Inf; try --dtype float32")
        repaired, errors = choice.ridge is not None, (choice.error_before, choice.error_after)
        self.blocks.append(RepairedBlock(index, KINDS[kind], side, repaired, choice.ridge, *errors))

    def _refit_output(
        self, index: int, member: Member, target: torch.Tensor | None, weight: torch.Tensor | None = None
    ) -> None:
        """Refit one block; target (N, T, C) on the CPU, None for the block's own dense output on the pruned stream;
        weight (N, T, 1) of the tokens, None for one each."""
        module = self.runner.layers[index].get_submodule(member.path)
        shape = self.plan.architecture.layers[index]
        rows = torch.from_numpy(member_rows(member, shape, self.plan.kept(index, member.kind)))
        gone = torch.ones(module.in_features, dtype=torch.bool)
        gone[rows] = False
        if not gone.any() and (target is None or not self.diverged):
            return
        kept, gone = rows.to(module.weight.device), gone.to(module.weight.device)
        fit, held_out = self._moments(index, member, kept, target, weight)
        choice = choose(
            fit,
            held_out,
            module.weight[:, kept],
            module.bias,
            ridges=self.how.ridges,
            stored_dtype=self.how.stored_dtype,
        )
        self._note(index, member.kind, OUTPUT, choice, fit.lack_energy)
        module.weight[:, gone] = 0.0
        module.weight[:, kept] = choice.weight
        if module.bias is not None and choice.bias is not None:
            module.bias.copy_(choice.bias)
        self.diverged = True

    def _moments(
        self, index: int, member: Member, kept: torch.Tensor, target: torch.Tensor | None, weight: torch.Tensor | None
    ) -> list[Moments]:
        """The sums over fitted and over held-out windows."""
        module = self.runner.layers[index].get_submodule(member.path)
        whole = module.weight.float()
        left, bias = whole[:, kept], 0.0 if module.bias is None else module.bias.float()
        norm = self.norms[index][member.kind]

        def step(moments: Moments, rows: slice) -> None:
            inputs = self.runner.input_of(member.path, index, self.pruned, rows).float().flatten(0, 1)
            k = inputs[:, kept]
            y = inputs @ whole.T + bias if target is None else _tokens(target, rows, k)
            w = None if weight is None else _tokens(weight, rows, k)
            if target is None and norm is not None:
                w = _one_over_mean_square(y)
            moments.add(k, y - (k @ left.T + bias), y, w)

        return self._over_windows(
            [Moments(module.out_features, len(kept), module.weight.device) for _ in range(2)], step
        )

    def _over_windows(self, sums: list[S], step: Callable[[S, slice], None]) -> list[S]:
        """The first of the two over fitted windows, the second over held-out ones."""
        for moments, windows in zip(sums, (self.fitted, self.held_out), strict=True):
            self.runner.in_batches(partial(step, moments), windows)
        return sums


def _tokens(values: torch.Tensor, rows: slice, like: torch.Tensor) -> torch.Tensor:
    """values[rows] (B, T, C) as float32 (B·T, C), where ``like`` is."""
    return values[rows].flatten(0, 1).to(like.device).float()


def _output_norms(layer: Any, family: Family) -> tuple[Any, Any]:
    """The modules between o_proj, down_proj and the residual stream; (None, None) where there are none."""
    paths = family.output_norms
    return (None, None) if paths is None else (layer.get_submodule(paths[0]), layer.get_submodule(paths[1]))


def _one_over_mean_square(values: torch.Tensor) -> torch.Tensor:
    """float32 (..., 1) for values (..., C); 0 where they are all but zero: nothing there can be refitted."""
    square = values.float().square().mean(-1, keepdim=True)
    return torch.where(square > 1e-20, square.reciprocal(), 0.0)


def _before_norm(norm: Any, y: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What to add to y so that norm(y) moves by about ``change``: the norm's scale at y, inverted. float32 (N, T, C).

    RMSNorm gives gain * y / rms(y). A channel of small gain cannot be moved far, so the inverse of the gain is damped.
    """
    gain = norm(torch.ones_like(y[:1, :1]).to(norm.weight.device)).float().to(y.device)
    inverse = gain / (gain.square() + 0.01 * gain.square().mean())
    return change * inverse * y.float().square().mean(-1, keepdim=True).sqrt()
