"""Layers made narrow, and widened again by storing every group several times. Both act on any supported family.

A channel stored k times with a k-th of its ``down_proj`` column computes what it did, and a KV group stored k times
with a k-th of its ``o_proj`` columns too. For one copy, w·∂L/∂w of the rows of gate and up (of q, k and v) is a k-th,
since the weight is whole and the gradient a k-th; in the columns the weight is a k-th and the gradient whole. So I_g of
a copy is a k-th of the group's, at the same cost: each copy looks dispensable, all of them together are not.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from core.families import IN, Family, Member, member_rows
from core.groups import Architecture, LayerShape
from core.plan import PruningPlan
from models.architecture import architecture_of
from models.narrow import empty_narrow_model
from pruning.surgery import operate


def narrowed(model: Any, family: Family, importance: np.ndarray, widths: Mapping[int, tuple[int, int]]) -> Any:
    """``model`` with only the most important groups of some layers left; it must not be used again.

    importance: float64 (G,). widths: layer -> KV groups and channels that it keeps.
    """
    plan = plan_of_widths(architecture_of(model, family), importance, widths)
    return operate(model, empty_narrow_model(model, family, plan), family, plan)


def plan_of_widths(
    architecture: Architecture, importance: np.ndarray, widths: Mapping[int, tuple[int, int]]
) -> PruningPlan:
    """Keep these numbers of KV groups and channels in some layers, by importance (ties: the first), all elsewhere."""
    groups = architecture.groups
    keep = np.ones(len(groups), dtype=bool)
    for layer, counts in widths.items():
        for kind, count in enumerate(counts):
            rows = groups.rows(layer, kind)
            keep[rows] = False
            keep[rows.start + np.argsort(-importance[rows], kind="stable")[:count]] = True
    removed = int(groups.cost[~keep].sum())
    ratio = removed / architecture.prunable_params
    return PruningPlan(architecture, keep, (), ratio, "prunable", removed, removed, "")


@torch.no_grad()
def widened(narrow: Any, family: Family, config: Any) -> Any:
    """The same function as a float32 model of ``config``, in eval mode: copies of a group lie next to one another.

    Every width of ``config`` must be a multiple of the narrow layer's.
    """
    wide = AutoModelForCausalLM.from_config(config).float().eval()
    few, many = architecture_of(narrow, family), architecture_of(wide, family)
    tensors = dict(narrow.state_dict())
    for index, (small, large) in enumerate(zip(few.layers, many.layers, strict=True)):
        for member in family.members:
            for name in (f"{family.layers}.{index}.{member.path}.{part}" for part in ("weight", "bias")):
                if name in tensors:
                    tensors[name] = repeated(member, tensors[name], small, large)
    wide.load_state_dict(tensors)
    return wide


def repeated(member: Member, tensor: torch.Tensor, small: LayerShape, large: LayerShape) -> torch.Tensor:
    """A member's weight (out, in) or bias (out,), its groups repeated to fill ``large``; columns are divided."""
    have, want = small.widths[member.kind], large.widths[member.kind]
    if have == want or member.axis >= tensor.ndim:
        return tensor
    times, rest = divmod(want, have)
    assert rest == 0, f"{member.path}: {want} is no multiple of {have}"
    rows = torch.from_numpy(member_rows(member, small, np.repeat(np.arange(have), times)))
    copies = tensor.index_select(member.axis, rows)
    return copies / times if member.axis == IN else copies
