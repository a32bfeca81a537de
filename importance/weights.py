"""Criteria that need no gradient: magnitude (no data) and wanda (one forward pass)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.batching import for_each_batch
from core.errors import NumericalError
from core.families import IN, Family, Member
from core.groups import Architecture
from core.measures import Importance
from core.progress import tqdm
from core.windows import TokenWindows
from importance.measuring import group_sums, left_as_found

BLOCK_VALUES = 1 << 24  # weights summed at once by magnitude: 64 MiB in float32


def magnitude_importance(model: Any, family: Family, architecture: Architecture) -> Importance:
    """I_g = sum over all members of |w|, biases included. No data."""
    layers = model.get_submodule(family.layers)

    def tensors_of(layer: int, member: Member) -> tuple[torch.Tensor, torch.Tensor | None]:
        module = layers[layer].get_submodule(member.path)
        return module.weight, module.bias

    return summed_magnitudes(tensors_of, family, architecture)


@torch.no_grad()
def summed_magnitudes(
    tensors_of: Callable[[int, Member], tuple[torch.Tensor, torch.Tensor | None]],
    family: Family,
    architecture: Architecture,
) -> Importance:
    """The same over any source of weights. tensors_of(layer, member): weight (out, in) and bias (out,) or None."""
    values = np.zeros(len(architecture.groups))
    for layer, shape in enumerate(tqdm(architecture.layers, desc="importance (magnitude)", unit="layer", leave=False)):
        for member in family.members:
            along_axis = _absolute_sums(member, *tensors_of(layer, member))
            values[architecture.groups.rows(layer, member.kind)] += group_sums(member, shape, along_axis).cpu().numpy()
    return Importance(values=values, criterion="magnitude", gradients=None)


def _absolute_sums(member: Member, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """float32 (rows,): sum of |w| over all that shares a position along ``member.axis``.

    In blocks of rows: the float32 copies of a large bfloat16 weight would take four times its memory.
    """
    blocks = weight.split(max(1, BLOCK_VALUES // weight.shape[1]))
    sums = [block.float().abs().sum(1 - member.axis) for block in blocks]
    if member.axis == IN:
        return torch.stack(sums).sum(0)
    return torch.cat(sums) if bias is None else torch.cat(sums) + bias.float().abs()


@torch.no_grad()
def wanda_importance(
    model: Any,
    family: Family,
    architecture: Architecture,
    windows: TokenWindows,
    *,
    batch_size: int | None = None,
) -> Importance:
    """I_g = sum over the group's ``o_proj``/``down_proj`` columns j of sum_d |w_dj| * ||x_j||_2 (arXiv:2306.11695).

    ||x_j||_2 runs over every calibration token; squares are summed in float64 across batches.
    Raises NumericalError when a layer's inputs are NaN or Inf.
    """
    values = np.zeros(len(architecture.groups))
    halves = np.zeros((2, len(values)))  # norms over half the tokens are smaller, all alike
    members = [member for member in family.members if member.path in (family.attention_output, family.mlp_output)]
    modules = {
        (index, member): layer.get_submodule(member.path)
        for index, layer in enumerate(model.get_submodule(family.layers))
        for member in members
    }
    device = next(model.parameters()).device
    squares = {
        key: torch.zeros(module.in_features, dtype=torch.float64, device=device) for key, module in modules.items()
    }
    even = {key: torch.zeros_like(total) for key, total in squares.items()}
    pending: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    seen = 0

    def watch(key: Any, inputs: torch.Tensor) -> None:
        squared = inputs.float().square()
        pending[key] = squared.sum((0, 1)), squared[seen % 2 :: 2].sum((0, 1))

    def step(batch: np.ndarray) -> None:
        nonlocal seen
        pending.clear()
        model(input_ids=torch.from_numpy(batch).to(device), use_cache=False, logits_to_keep=1)
        for key, (added, added_even) in pending.items():
            squares[key] += added
            even[key] += added_even
        seen += len(batch)

    with left_as_found(model) as handles:
        for key, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda _module, args, key=key: watch(key, args[0])))
        for_each_batch(windows.ids, step, batch_size, "importance (wanda)")
    for (index, member), module in modules.items():
        if not torch.isfinite(squares[index, member]).all():
            raise NumericalError(f"NaN or Inf in the inputs of layer {index} {member.path}; try --dtype float32")
        rows, weight = architecture.groups.rows(index, member.kind), module.weight.float().abs().sum(0)
        all_of, first = squares[index, member], even[index, member]
        for target, sums in ((values, all_of), (halves[0], first), (halves[1], (all_of - first).clamp_min(0.0))):
            target[rows] = group_sums(member, architecture.layers[index], weight * sums.sqrt()).cpu().numpy()
    found = halves if len(windows) > 1 else None
    return Importance(values=values, criterion="wanda", gradients=None, windows_used=len(windows), halves=found)
