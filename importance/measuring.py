"""What every measurement shares: leave the model as found, the loss, group sums, guarding against NaN."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from core.errors import NumericalError
from core.families import Family, Member, rows_per_group
from core.groups import Architecture, LayerShape

RARE = 0.05  # share of windows that may yield NaN or Inf before a run stops
LEAST_KEPT_BYTES, MOST_KEPT_BYTES = 256 << 20, 512 << 20  # of activations, between forward and backward
IGNORED = -100  # target of a position that predicts nothing


@contextmanager
def left_as_found(model: Any) -> Iterator[list[RemovableHandle]]:
    """Measure inside; hooks put into the yielded list, modes, requires_grad and gradients are restored on exit.

    Inside, the model is in eval mode, every parameter is frozen and has no gradient. Also after an exception.
    """
    training = {module: module.training for module in model.modules()}
    parameters = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    handles: list[RemovableHandle] = []
    try:
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
        for parameter, (requires_grad, gradient) in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """float32 (B, T): -ln p of each next token; 0 in the last column. logits (B, T, V), ids int64 (B, T).

    The targets are shifted, not the logits: slicing V-wide rows would copy them in forward and again in backward.
    """
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(ids.shape)


def summed_nll(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """L = sum over sequences and predicted tokens of the NLL, nats; ids int64 (B, T). The cache is not used."""
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    logits = model(input_ids=ids, use_cache=False).logits
    loss: torch.Tensor = _SummedNLL.apply(logits.flatten(0, 1), targets.flatten())
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
        norm = torch.cat([rows.float().logsumexp(-1) for rows in logits.split(_rows_at_a_time(logits))])
        counted = targets != IGNORED
        picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, targets, norm)
        return torch.where(counted, norm - picked, 0.0).double().sum().float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, norm = ctx.saved_tensors
        gradient = logits.detach()
        size = _rows_at_a_time(logits)
        for rows, target, n in zip(gradient.split(size), targets.split(size), norm.split(size), strict=True):
            probability = (rows.float() - n[:, None]).exp_()
            counted = (target != IGNORED).float()
            probability.scatter_add_(1, target.clamp(min=0)[:, None], -torch.ones_like(counted)[:, None])
            rows.copy_(probability.mul_((counted * outer)[:, None]))
        return gradient, None


def _rows_at_a_time(logits: torch.Tensor) -> int:
    return max(1, (1 << 22) // logits.shape[-1])  # 16 MiB of float32


def group_sums(member: Member, shape: LayerShape, along_axis: torch.Tensor) -> torch.Tensor:
    """Sum (..., rows) over each group's rows -> (..., K or F), adding up the member's parts."""
    groups = shape.widths[member.kind]
    runs = [rows_per_group(part, shape) for part in member.parts]
    pieces = along_axis.split([groups * run for run in runs], dim=-1)
    total = pieces[0].unflatten(-1, (groups, runs[0])).sum(-1)
    for piece, run in zip(pieces[1:], runs[1:], strict=True):
        total = total + piece.unflatten(-1, (groups, run)).sum(-1)
    return total


def halves_of(even: np.ndarray, total: np.ndarray, num_even: int, num_odd: int) -> np.ndarray | None:
    """float64 (2, G): means over the even and over the odd windows, from sums over the even ones and over all.

    None where a half has no window. Rounding of the difference never makes an importance negative.
    """
    if not (num_even and num_odd):
        return None
    return np.stack([even / num_even, np.maximum(total - even, 0.0) / num_odd])


class LayerGradients:
    """Running mean, norm, min and max of each layer's raw gradients; one row a window, float64 on the CPU."""

    def __init__(self, num_layers: int) -> None:
        self.mean = np.zeros(num_layers)
        self.norm = np.zeros(num_layers)
        self.min = np.full(num_layers, np.inf)
        self.max = np.full(num_layers, -np.inf)
        self.windows = 0

    def add(self, mean: np.ndarray, norm: np.ndarray) -> None:
        """mean |g| and L2 norm, each (windows, L)."""
        self.mean += mean.sum(0)
        self.norm += norm.sum(0)
        self.min = np.minimum(self.min, mean.min(0))
        self.max = np.maximum(self.max, mean.max(0))
        self.windows += len(mean)


class NonFiniteGuard:
    """Counts windows that yielded NaN or Inf; raises NumericalError once they are no longer rare."""

    def __init__(self, num_windows: int) -> None:
        self.allowed = int(RARE * num_windows)
        self.skipped = 0

    def admit(self, per_layer: np.ndarray, loss_is_finite: bool, windows: int) -> bool:
        """True when the step may count. per_layer: (..., L), NaN or Inf where a layer's values were."""
        bad_layers = np.flatnonzero(~np.isfinite(per_layer).reshape(-1, per_layer.shape[-1]).all(0))
        if loss_is_finite and not len(bad_layers):
            return True
        self.skipped += windows
        if self.skipped > self.allowed:
            where = f"gradients of layers {', '.join(map(str, bad_layers[:8]))}" if len(bad_layers) else "the loss"
            raise NumericalError(
                f"NaN or Inf in {where} ({self.skipped} windows so far, {self.allowed} tolerated); "
                "try --dtype float32, or check that the checkpoint is intact"
            )
        return False


def layers_to_recompute(model: Any, architecture: Architecture, tokens: int) -> int:
    """How many layers, from the first, must recompute their activations in backward so that the rest may keep theirs.

    A layer keeps about 7 C + 4 F values a token. What is kept is bounded by a quarter of the weights, but by no less
    than 256 MiB (a small model need not be slow) and no more than 512 MiB (a large one must fit).
    """
    first = next(model.parameters())
    weights = architecture.total_params * first.element_size()
    budget = min(max(weights / 4, LEAST_KEPT_BYTES), MOST_KEPT_BYTES)
    kept = 0
    for layer in reversed(architecture.layers):
        budget -= tokens * first.element_size() * (7 * architecture.hidden_size + 4 * layer.intermediate_size)
        if budget < 0:
            break
        kept += 1
    return architecture.num_layers - kept


@contextmanager
def checkpointed_layers(model: Any, family: Family, count: int) -> Iterator[None]:
    """Recompute the first ``count`` decoder layers in backward instead of keeping their activations (Chen et al. 2016).

    The first ones, because backward comes to them last, when the others have given their memory back.

    The reentrant form runs a layer first without and then with gradients, so hooks that look at
    ``torch.is_grad_enabled()`` see each layer once, and nothing they hold outlives the layer's own backward.
    """
    layers = list(model.get_submodule(family.layers))[:count]

    def first_input_requires_grad(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])

    handles = [layers[0].register_forward_pre_hook(first_input_requires_grad)] if layers else []
    try:
        for layer in layers:
            dense = layer.forward
            layer.forward = lambda hidden, *args, _dense=dense, **kwargs: checkpoint(
                partial(_dense, **kwargs), hidden, *args, use_reentrant=True
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.__dict__.pop("forward", None)
