"""Batches of windows through the model: forward alone, or forward and backward with activations recomputed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.batching import TOKENS_A_BATCH, busy_tokens, is_out_of_memory
from core.determinism import is_refusal, only_deterministic
from core.engine import engine_of
from core.errors import reason_of
from core.families import Family
from core.groups import Architecture, LayerShape
from core.memory import RESTING_SHARE, free_gpu_bytes, gpu_capacity
from core.say import note
from importance.sums import summed_nll

SHARE_OF_FREE = 0.7  # of a device's free memory, for activations
LOGITS_BYTES = 2**30  # float32 logits of a forward pass that needs all of them, at first
LEAST_KEPT_BYTES, MOST_KEPT_BYTES = 384 << 20, 512 << 20  # of activations, between forward and backward


@dataclass(frozen=True)
class Batch:
    """Consecutive windows. ids: int64 (B, T). first: the number of the first one among all windows.

    scale: a power of two that the pass multiplies the loss by, so that gradients stay inside their dtype's range.
    """

    ids: np.ndarray
    first: int
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def half(self, number: int) -> slice:
        """The batch's windows that are even (0) or odd (1) among all."""
        return slice((number - self.first) % 2, None, 2)

    def windows(self) -> "list[Batch]":
        """Each window alone."""
        return [replace(self, ids=row[None], first=self.first + i) for i, row in enumerate(self.ids)]


class Forward:
    """One forward pass, logits of the last position alone; or what ``compute`` does with the batch, without gradients.

    compute: from ids int64 (B, T) on the model's device to a loss, float (). streams: of hidden states that it carries
    at once where layers come one at a time.
    """

    goes_back = False

    def __init__(
        self, model: Any, compute: Callable[[torch.Tensor], torch.Tensor] | None = None, streams: int = 1
    ) -> None:
        self.model, self.compute, self.streams = model, compute, streams
        self.device = engine_of(model).device

    @property
    def by_layer(self) -> bool:
        return self.compute is None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor | None:
        ids = torch.from_numpy(batch.ids).to(self.device)
        if self.compute is not None:
            return self.compute(ids)
        self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return None

    def first_windows(self, seq_len: int) -> int:
        """As many as keep the device busy, and their logits, where all of them are needed, below a GB."""
        tokens = busy_tokens(self.device, _widest(self.model))
        if self.compute is not None:
            tokens = min(tokens, max(TOKENS_A_BATCH, LOGITS_BYTES // (4 * _vocabulary(self.model))))
        if self.compute is not None and engine_of(self.model).streams:
            first = next(self.model.parameters())
            room = gpu_capacity(self.device)
            room = MOST_KEPT_BYTES if room is None else int(RESTING_SHARE * room)
            tokens = room // (self.streams * self.model.config.get_text_config().hidden_size * first.element_size())
        return max(1, tokens // seq_len)

    def gives_way(self, error: RuntimeError) -> bool:
        """Whether a pass that failed so has something left to do without; it is given up now."""
        return False


class Backward:
    """Forward and backward of the NLL summed over the batch. As many activations are kept as the budget allows.

    held: values a token that the measurement keeps beside them until the pass has ended.
    """

    by_layer = goes_back = True

    def __init__(self, model: Any, family: Family, architecture: Architecture, *, held: int = 0) -> None:
        self.model, self.family, self.architecture, self.held = model, family, architecture, held
        self.device = engine_of(model).device
        self.keeps_activations = self.deterministic = True

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The loss, float32 (), on the model's device."""
        ids = torch.from_numpy(batch.ids).to(self.device)
        recomputed = self.architecture.num_layers
        if self.keeps_activations:
            recomputed = layers_to_recompute(self.model, self.architecture, ids.numel(), self.held)
        layers = checkpointed_layers(self.model, self.family, recomputed)
        same_order = only_deterministic(self.device, self.deterministic)
        with torch.enable_grad(), layers, no_gradient_at_zeros(self.model, self.family), same_order:
            loss = summed_nll(self.model, ids)
            loss.backward(torch.full_like(loss, batch.scale))
        return loss.detach()

    def first_windows(self, seq_len: int) -> int:
        """As many as keep the device busy, and their activations within a share of what the weights leave of it: to
        compute layers twice costs more than a larger batch gains."""
        tokens, room = busy_tokens(self.device, _widest(self.model)), gpu_capacity(self.device)
        if room is not None:
            first = next(self.model.parameters())
            values = sum(values_kept(self.architecture, layer) for layer in self.architecture.layers) + self.held
            needed = first.element_size() * (values + 2 * _vocabulary(self.model))  # a token
            room -= self.architecture.total_params * first.element_size()
            tokens = min(tokens, max(TOKENS_A_BATCH, int(RESTING_SHARE * room) // needed))
        return max(1, tokens // seq_len)

    def gives_way(self, error: RuntimeError) -> bool:
        """As ``Forward``: from now on all layers recompute their activations, or sums come in any order."""
        if is_refusal(error):
            could, self.deterministic = self.deterministic, False
            if could:
                note(f"gradients differ in their last digits from run to run: {reason_of(error, 160)}")
        else:
            could, self.keeps_activations = self.keeps_activations and is_out_of_memory(error), False
        return could


def values_kept(architecture: Architecture, layer: LayerShape) -> int:
    """Activations that a layer keeps between forward and backward, values a token, roughly."""
    return 7 * architecture.hidden_size + 4 * layer.intermediate_size


def layers_to_recompute(model: Any, architecture: Architecture, tokens: int, held: int = 0) -> int:
    """How many layers, from the first, must recompute their activations in backward so that the rest may keep theirs.

    held: values a token that are kept beside activations.
    """
    first = next(model.parameters())
    budget = activation_budget(model, architecture, tokens, held)
    kept = 0
    for layer in reversed(architecture.layers):
        budget -= tokens * first.element_size() * values_kept(architecture, layer)
        if budget < 0:
            break
        kept += 1
    return architecture.num_layers - kept


def activation_budget(model: Any, architecture: Architecture, tokens: int, held: int = 0) -> float:
    """Bytes of activations that may live between forward and backward.

    Where the device says what is free: that, less the logits, one gradient of their size and what is held, less a
    margin for what layers need while they run. Elsewhere a quarter of the weights, but no less than 384 MiB (a small
    model need not be slow) and no more than 512 MiB (a large one must fit).
    """
    first = next(model.parameters())
    free = free_gpu_bytes(first.device)
    if free is None:
        weights = architecture.total_params * first.element_size()
        return min(max(weights / 4, LEAST_KEPT_BYTES), MOST_KEPT_BYTES)
    beside = tokens * first.element_size() * (2 * _vocabulary(model) + held)
    return SHARE_OF_FREE * max(0, free - beside)


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _widest(model: Any) -> int:
    """Inputs of the widest linear module."""
    return max((module.in_features for module in model.modules() if isinstance(module, nn.Linear)), default=1)


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


@contextmanager
def no_gradient_at_zeros(model: Any, family: Family) -> Iterator[None]:
    """Inside, a token whose residual stream is exactly zero behind a layer has no gradient there.

    What writes to a stream that stays zero writes zero, whatever its weights, so such a token tells groups nothing. Yet
    a norm multiplies its gradient by 1/sqrt(eps), 1000 each: where the embedding of the first token is a row of zeros
    (bos == pad), a few layers take it out of float32's range, and mean squares of gradients measure nothing else.
    """

    def watch(_module: Any, _args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            silent = ~hidden.detach().any(-1, keepdim=True)  # (B, T, 1)
            hidden.register_hook(lambda gradient: gradient.masked_fill(silent, 0.0))

    handles = [layer.register_forward_hook(watch) for layer in model.get_submodule(family.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
