"""Magnitude, the criterion that reads nothing but weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.families import IN, Family, Member
from core.groups import Architecture
from core.measured import Importance
from core.progress import tqdm
from importance.sums import group_sums

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
