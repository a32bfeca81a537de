"""Importance of a model that is not in memory: its tensors come by name, one at a time."""

from collections.abc import Mapping

import torch

from core.families import Family, Member
from core.groups import Architecture
from core.measured import Importance
from importance.magnitude import summed_magnitudes


def streamed_magnitude(tensors: Mapping[str, torch.Tensor], family: Family, architecture: Architecture) -> Importance:
    """``magnitude`` from a mapping of state dict names to tensors; each weight and bias of a group is read once.

    Bit for bit what ``magnitude_importance`` gives for the loaded model: both sum by the same code.
    """

    def tensors_of(layer: int, member: Member) -> tuple[torch.Tensor, torch.Tensor | None]:
        path = f"{family.layers}.{layer}.{member.path}"
        return tensors[f"{path}.weight"], tensors.get(f"{path}.bias")

    return summed_magnitudes(tensors_of, family, architecture)
