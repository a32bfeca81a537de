"""What criteria and priors share: the loss of windows, and sums over groups."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from core.batching import values_at_once
from core.families import Family, Member, rows_per_group
from core.groups import LayerShape

IGNORED = -100  # target of a position that predicts nothing


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float32 (B, T): -ln p of each next token; 0 in the last column. logits (B, T, V), ids int64 (B, T).

    The targets are shifted, not the logits: slicing V-wide rows would copy them in forward and again in backward.
    """
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    return targets_nll(logits.flatten(0, 1), targets.flatten()).view(ids.shape)


def targets_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float32 (N,): -ln p of targets int64 (N,), 0 where IGNORED; logits (N, V)."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")


def summed_nll(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """L = sum over sequences and predicted tokens of the NLL, nats; ids int64 (B, T). The cache is not used."""
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    logits = model(input_ids=ids, use_cache=False).logits
    return sum_of_nll(logits.flatten(0, 1), targets.flatten())


def sum_of_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float32 (): the NLL of targets int64 (N,), none where IGNORED; logits (N, V), overwritten in backward."""
    loss: torch.Tensor = _SummedNLL.apply(logits, targets)
    return loss


class _SummedNLL(torch.autograd.Function):
    """sum_i (logsumexp(x_i) - x_i[target_i]), its gradient softmax(x) - onehot written over the logits themselves.

    Logits are the largest tensor of a window (T x V), and the usual loss holds three more of their size when all
    activations are alive. Nothing behind the head needs them in backward; were that not so, autograd's version
    counter would raise. A few rows at a time are computed in float32, whatever the model's dtype.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits (N, V), targets int64 (N,), IGNORED where nothing is predicted; returns float32 ()."""
        norm = torch.cat([rows.float().logsumexp(-1) for rows in logits.split(rows_at_a_time(logits))])
        counted = targets != IGNORED
        picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, targets, norm)
        return torch.where(counted, norm - picked, 0.0).double().sum().float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, norm = ctx.saved_tensors
        gradient = logits.detach()
        size = rows_at_a_time(logits)
        for rows, target, n in zip(gradient.split(size), targets.split(size), norm.split(size), strict=True):
            probability = (rows.float() - n[:, None]).exp_()
            counted = (target != IGNORED).float()
            place = target.clamp(min=0)[:, None]
            probability.scatter_(1, place, probability.gather(1, place) - 1)
            rows.copy_(probability.mul_((counted * outer)[:, None]))
        return gradient, None


def rows_at_a_time(logits: torch.Tensor) -> int:
    """How many rows of logits (P, V) are made float32 at a time: on a CPU 16 MiB of them."""
    return max(1, values_at_once(1 << 22, logits.device) // logits.shape[-1])


def group_sums(member: Member, shape: LayerShape, along_axis: torch.Tensor) -> torch.Tensor:
    """Sum (..., rows) over each group's rows -> (..., K or F), adding up the member's parts."""
    groups = shape.widths[member.kind]
    runs = [rows_per_group(part, shape) for part in member.parts]
    pieces = along_axis.split([groups * run for run in runs], dim=-1)
    total = pieces[0].unflatten(-1, (groups, runs[0])).sum(-1)
    for piece, run in zip(pieces[1:], runs[1:], strict=True):
        total = total + piece.unflatten(-1, (groups, run)).sum(-1)
    return total


def output_projections(model: Any, family: Family) -> Iterator[tuple[int, Member, nn.Linear]]:
    """(layer, member, module) of every ``o_proj`` and ``down_proj``: what the groups' signals leave their block by."""
    members = [member for member in family.members if member.path in (family.attention_output, family.mlp_output)]
    for index, layer in enumerate(model.get_submodule(family.layers)):
        for member in members:
            yield index, member, layer.get_submodule(member.path)
