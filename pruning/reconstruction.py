"""Repair after selection: refit o_proj and down_proj, layer by layer, to what the dense model computes.

The walk goes through the model once, before surgery. A removed group is a set of columns of o_proj or down_proj, so
the model is repaired by zeroing those and rewriting the others (``pruning.refit``); surgery then cuts the zeros away.
The inputs of a block come from the prefix as it already is, pruned and repaired. Its target is

    stream   what brings the residual stream behind the block back to the dense model's: with h the stream before the
             block and y its dense output, y + h_dense - h_pruned. Every block makes up for what those before it left.
             A token counts by 1 / mean(h^2), h the dense stream behind the block, because the norms that read the
             stream divide by it: without, a few tokens of huge norm (the first of a window) would decide alone
    dense    y, the output of the dense block on the dense stream
    pruned   the output of the dense block on the pruned stream

Families that put a norm behind o_proj and down_proj (``Family.output_norms``) change the stream by gain · y / rms(y).
Towards ``stream`` what the stream lacks is divided by that scale, taken at the dense y, before it is added to y. Their
tokens count by 1 / mean(y^2) for every target, on top of the above: the norm divides by it.

Which λ, and whether the block changes at all, is decided on windows that no refit sees.

The dense model is the teacher, so any tokens make an example. Text ``mixed`` adds to the windows that are fitted as
many with the same tokens in random order: inputs that the calibration text alone never shows, which other text may.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from core.errors import NumericalError, UsageError
from core.families import IN, Family, Member, member_rows
from core.files import write_json
from core.groups import ATTENTION, KINDS
from core.plan import PruningPlan
from core.windows import TokenWindows
from pruning.refit import Moments, choose
from pruning.streams import LayerRunner

TARGETS = ("stream", "dense", "pruned")
TEXTS = ("mixed", "calibration")
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class RepairedBlock:
    """One block. errors: Σ ‖target - output‖² / Σ ‖target‖² on held-out windows, with sliced and with final weights;
    towards ``stream`` both sums are weighted by token, and target - output is what the stream lacks behind the block.

    ridge: λ over the mean diagonal of K K^T; None where the block keeps its sliced weights.
    """

    layer: int
    kind: str
    repaired: bool
    ridge: float | None
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Reconstruction:
    """What a repair did. blocks: in the order of the model, without those that needed none."""

    target: str
    ridges: tuple[float, ...]
    windows_fitted: int
    windows_shuffled: int
    windows_held_out: int
    blocks: tuple[RepairedBlock, ...]

    @property
    def num_repaired(self) -> int:
        return sum(block.repaired for block in self.blocks)

    @property
    def median_change(self) -> float:
        """Median over blocks of error_after / error_before - 1; 0.0 where there is none."""
        changes = [block.error_after / block.error_before - 1 for block in self.blocks if block.error_before]
        return float(np.median(changes)) if changes else 0.0

    def line(self) -> str:
        """One line for the console."""
        change = f"{100 * self.median_change:+.0f} %".replace("-", "−")
        return f"repaired {self.num_repaired} of {len(self.blocks)} blocks, held-out error of blocks {change} (median)"

    def sentence(self) -> str:
        """For the model card."""
        shuffled = " and as many with their tokens in random order" if self.windows_shuffled else ""
        return (
            f"least squares on {self.windows_fitted} calibration windows{shuffled}: `o_proj` and `down_proj` of "
            f"{self.num_repaired} blocks were refitted {_PURPOSE[self.target]}; {self.windows_held_out} further "
            "windows decided how strongly, and whether at all"
        )

    def to_json(self) -> dict[str, Any]:
        values = {"schema_version": 1} | asdict(self)
        return values | {"num_repaired": self.num_repaired, "median_change": self.median_change}


_PURPOSE = {
    "stream": "so that the residual stream comes back to the dense model's",
    "dense": "so that their outputs come close to the dense model's",
    "pruned": "so that their outputs come close to those of the whole blocks on the same inputs",
}


def write_reconstruction(path: Path, reconstruction: Reconstruction) -> Path:
    return write_json(path, reconstruction.to_json())


@torch.no_grad()
def reconstruct(
    model: Any,
    family: Family,
    plan: PruningPlan,
    windows: TokenWindows,
    *,
    target: str = "stream",
    text: str = "mixed",
    batch_size: int | None = None,
    stored_dtype: torch.dtype | None = None,
    ridges: tuple[float, ...] = RIDGES,
) -> Reconstruction:
    """Rewrite o_proj and down_proj of ``model`` in place, all columns of removed groups zero; the rest is left alone.

    windows: calibration; every fourth (the last of fewer) is held out of the refits. stored_dtype: refitted weights
    are rounded to what they will be saved in. A layer that loses nothing keeps its weights, frozen or not. Removed
    layers pass the stream on. text: mixed adds windows of shuffled tokens, 3/4 more. About three passes over all these,
    and one more for the dense stream, if it is needed.
    Raises UsageError with fewer than two windows, NumericalError where a stream holds NaN or Inf.
    """
    if len(windows) < 2:
        raise UsageError("--reconstruct holds one window out to decide by: --num_samples 1 is too few, use 2 or more")
    walk = _Walk(model, family, plan, windows, target, text, batch_size, stored_dtype, ridges)
    for layer in tqdm(range(plan.architecture.num_layers), desc="repair", unit="layer", leave=False):
        walk.layer(layer)
    fitted, shuffled = len(walk.fitted) - walk.shuffled, walk.shuffled
    return Reconstruction(target, ridges, fitted, shuffled, len(walk.held_out), tuple(walk.blocks))


@contextmanager
def repaired_for_now(
    model: Any,
    family: Family,
    plan: PruningPlan,
    windows: TokenWindows,
    *,
    target: str = "stream",
    text: str = "mixed",
    batch_size: int | None = None,
    stored_dtype: torch.dtype | None = None,
) -> Iterator[Reconstruction]:
    """Inside, ``reconstruct`` has been done; afterwards the weights are what they were, from copies on the CPU."""
    touched = [
        parameter
        for layer in model.get_submodule(family.layers)
        for path in (family.attention_output, family.mlp_output)
        for parameter in layer.get_submodule(path).parameters()
    ]
    before = [parameter.detach().to("cpu", copy=True) for parameter in touched]
    try:
        yield reconstruct(
            model, family, plan, windows, target=target, text=text, batch_size=batch_size, stored_dtype=stored_dtype
        )
    finally:
        with torch.no_grad():
            for parameter, values in zip(touched, before, strict=True):
                parameter.copy_(values)


def held_out_windows(num_windows: int) -> np.ndarray:
    """bool (N,): every fourth window, or the last one where there are fewer."""
    held_out = np.arange(num_windows) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    held_out[-1] |= not held_out.any()
    return held_out


def shuffled_tokens(ids: np.ndarray) -> np.ndarray:
    """int64 (N, T): the same tokens in random order over all windows, the first of each (BOS, mostly) where it was.

    The order is that of a fixed seed, so a repair depends on its windows alone.
    """
    mixed = ids.copy()
    mixed[:, 1:] = np.random.default_rng(0).permutation(ids[:, 1:].reshape(-1)).reshape(ids[:, 1:].shape)
    return mixed


class _Walk:
    """The two streams, and the blocks so far. ``dense`` is None where nothing but the pruned stream is needed."""

    def __init__(
        self,
        model: Any,
        family: Family,
        plan: PruningPlan,
        windows: TokenWindows,
        target: str,
        text: str,
        batch_size: int | None,
        stored_dtype: torch.dtype | None,
        ridges: tuple[float, ...],
    ) -> None:
        self.plan, self.stored_dtype, self.ridges = plan, stored_dtype, ridges
        held_out = held_out_windows(len(windows))
        fitted = windows.ids[~held_out]
        shuffled = shuffled_tokens(fitted) if text == "mixed" else fitted[:0]
        ids = np.concatenate([fitted, shuffled, windows.ids[held_out]])
        self.shuffled, seen = len(shuffled), len(fitted) + len(shuffled)
        self.fitted, self.held_out = range(seen), range(seen, len(ids))
        self.runner = LayerRunner(model, family, ids, batch_size)
        self.norms = [_output_norms(layer, family) for layer in self.runner.layers]
        self.members = [member for member in family.members if member.axis == IN]  # attention first
        self.pruned = self.runner.embed()
        self.target = target
        self.dense = self.pruned.clone() if target != "pruned" else None
        self.diverged = False  # the two streams are still the same
        self.blocks: list[RepairedBlock] = []

    def layer(self, index: int) -> None:
        """Repair layer ``index`` and carry both streams past it."""
        paths = [member.path for member in self.members]
        before = None if self.dense is None else self.dense.clone()
        outputs: list[torch.Tensor | None] = [None] * len(paths)
        if self.dense is not None:
            outputs = list(self.runner.advance(index, self.dense, paths))
        if index in self.plan.removed_layers:
            self.diverged = True
            return
        if not self.plan.keep[self.plan.groups.layer == index].all():
            for member, y in zip(self.members, outputs, strict=True):
                norm = self.norms[index][member.kind]
                target, weight = y, None
                if self.target == "stream" and y is not None and before is not None:
                    target = self._towards_stream(index, member, y, before)
                    # The dense stream behind this block, as the model's own sum gives it.
                    before += y if norm is None else self.runner.through(norm, y)
                    weight = _one_over_mean_square(before)
                if norm is not None and y is not None:
                    weight = _one_over_mean_square(y) * (1.0 if weight is None else weight)
                self._block(index, member, target, weight)
        self.runner.advance(index, self.pruned)

    def _towards_stream(self, index: int, member: Member, y: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """y + h_dense - h_pruned, float32 (N, T, C), with ``before`` the dense stream that enters the block."""
        if not self.diverged:
            return y
        here = self.pruned if member.kind == ATTENTION else self.runner.between(index, self.pruned)
        lack = before.float() - here.float()
        norm = self.norms[index][member.kind]
        return y.float() + (lack if norm is None else _before_norm(norm, y, lack))

    def _block(
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
            fit, held_out, module.weight[:, kept], module.bias, ridges=self.ridges, stored_dtype=self.stored_dtype
        )
        if not np.isfinite([fit.lack_energy, choice.error_before]).all():
            raise NumericalError(f"the repair of layer {index} met NaN or Inf; try --dtype float32")
        module.weight[:, gone] = 0.0
        module.weight[:, kept] = choice.weight
        if module.bias is not None and choice.bias is not None:
            module.bias.copy_(choice.bias)
        self.diverged = True
        repaired, errors = choice.ridge is not None, (choice.error_before, choice.error_after)
        self.blocks.append(RepairedBlock(index, KINDS[member.kind], repaired, choice.ridge, *errors))

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

        both = [Moments(module.out_features, len(kept), module.weight.device) for _ in range(2)]
        for moments, windows in zip(both, (self.fitted, self.held_out), strict=True):
            self.runner.in_batches(partial(step, moments), windows)
        return both


def _tokens(values: torch.Tensor, rows: slice, like: torch.Tensor) -> torch.Tensor:
    """values[rows] (B, T, C) as float32 (B·T, C), where ``like`` is."""
    return values[rows].flatten(0, 1).to(like.device).float()


def _output_norms(layer: Any, family: Family) -> tuple[Any, Any]:
    """The modules between o_proj, down_proj and the residual stream; (None, None) where there are none."""
    paths = family.output_norms
    return (None, None) if paths is None else (layer.get_submodule(paths[0]), layer.get_submodule(paths[1]))


def _one_over_mean_square(values: torch.Tensor) -> torch.Tensor:
    """float32 (..., 1) for values (..., C)."""
    return values.float().square().mean(-1, keepdim=True).clamp_min(1e-20).reciprocal()


def _before_norm(norm: Any, y: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What to add to y so that norm(y) moves by about ``change``: the norm's scale at y, inverted. float32 (N, T, C).

    RMSNorm gives gain * y / rms(y). A channel of small gain cannot be moved far, so the inverse of the gain is damped.
    """
    gain = norm(torch.ones_like(y[:1, :1]).to(norm.weight.device)).float().to(y.device)
    inverse = gain / (gain.square() + 0.01 * gain.square().mean())
    return change * inverse * y.float().square().mean(-1, keepdim=True).sqrt()
