"""Criteria that need no gradient: magnitude (no data) and wanda (one forward pass)."""

from typing import Any

import numpy as np
import torch

from core.batching import for_each_batch
from core.errors import NumericalError
from core.families import OUT, Family
from core.groups import Architecture
from core.measures import Importance
from core.windows import TokenWindows
from importance.measuring import group_sums, left_as_found


@torch.no_grad()
def magnitude_importance(model: Any, family: Family, architecture: Architecture) -> Importance:
    """I_g = sum over all members of |w|, biases included. No data."""
    values = np.zeros(len(architecture.groups))
    for index, layer in enumerate(model.get_submodule(family.layers)):
        shape = architecture.layers[index]
        for member in family.members:
            module = layer.get_submodule(member.path)
            along_axis = module.weight.float().abs().sum(1 - member.axis)
            if member.axis == OUT and module.bias is not None:
                along_axis = along_axis + module.bias.float().abs()
            values[architecture.groups.rows(index, member.kind)] += group_sums(member, shape, along_axis).cpu().numpy()
    return Importance(values=values, criterion="magnitude", gradients=None)


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
    pending: dict[Any, torch.Tensor] = {}

    def step(batch: np.ndarray) -> None:
        pending.clear()
        model(input_ids=torch.from_numpy(batch).to(device), use_cache=False, logits_to_keep=1)
        for key, added in pending.items():
            squares[key] += added

    with left_as_found(model) as handles:
        for key, module in modules.items():
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, args, key=key: pending.__setitem__(key, args[0].float().square().sum((0, 1)))
                )
            )
        for_each_batch(windows.ids, step, batch_size, "importance (wanda)")
    for (index, member), module in modules.items():
        if not torch.isfinite(squares[index, member]).all():
            raise NumericalError(f"NaN or Inf in the inputs of layer {index} {member.path}; try --dtype float32")
        per_input = module.weight.float().abs().sum(0) * squares[index, member].sqrt()
        rows = architecture.groups.rows(index, member.kind)
        values[rows] = group_sums(member, architecture.layers[index], per_input).cpu().numpy()
    return Importance(values=values, criterion="wanda", gradients=None, windows_used=len(windows))
