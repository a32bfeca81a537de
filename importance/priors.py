"""Priors: what the model loses when one block, or one whole layer, is taken away.

    loss        Delta = NLL(block's output replaced by zero) - NLL(dense), nats per token; the residual stream passes
    similarity  1 - cosine between the residual stream before and after the block, mean over tokens (one pass)

For ``loss`` a variant starts from the input that its layer had in the dense pass (``prefixes``), so the 3 L variants
cost about half of 3 L passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from core.batching import for_each_batch
from core.errors import NumericalError
from core.families import Family
from core.measures import Prior
from core.windows import TokenWindows
from importance.measuring import left_as_found
from importance.prefixes import PrefixedLoss


@torch.no_grad()
def measure_prior(
    model: Any, family: Family, windows: TokenWindows, *, method: str = "loss", batch_size: int | None = None
) -> Prior:
    """Measure every block and layer on all given windows (calibration, never evaluation text).

    Raises NumericalError when the loss (or a cosine) is NaN or Inf.
    """
    device = next(model.parameters()).device
    with left_as_found(model) as handles:
        measure = _LossPrior(model, family) if method == "loss" else _SimilarityPrior(model, family, handles)
        total = _Sums(len(measure.layers))

        def step(batch: np.ndarray) -> None:
            total.add(measure.batch(torch.from_numpy(batch).to(device)))

        for_each_batch(windows.ids, step, batch_size, f"prior ({method})")
    prior = measure.result(total, len(windows), windows.seq_len)
    if not (np.isfinite(prior.block).all() and np.isfinite(prior.layer).all()):
        layer = int(np.flatnonzero(~np.isfinite(prior.block).all(1) | ~np.isfinite(prior.layer))[0])
        raise NumericalError(f"the prior of layer {layer} is NaN or Inf; try --dtype float32")
    return prior


class _Sums:
    """Sums over tokens, of a batch or of all: block (L, 2), layer (L,), and dense for the loss."""

    def __init__(self, num_layers: int) -> None:
        self.dense = 0.0
        self.block = np.zeros((num_layers, 2))
        self.layer = np.zeros(num_layers)

    def add(self, other: "_Sums") -> None:
        self.dense += other.dense
        self.block += other.block
        self.layer += other.layer


class _LossPrior:
    def __init__(self, model: Any, family: Family) -> None:
        self.loss, self.family = PrefixedLoss(model, family), family
        self.layers = self.loss.layers

    def batch(self, ids: torch.Tensor) -> _Sums:
        """Summed NLL of the dense model and of every variant; nothing is kept of a batch that fails half way."""
        sums = _Sums(len(self.layers))
        sums.dense = self.loss.dense_pass(ids)
        for index, layer in enumerate(self.layers):
            with self.loss.starting_at(index):
                for kind, path in enumerate((self.family.attention, self.family.mlp)):
                    with _silenced(layer.get_submodule(path), is_attention=kind == 0):
                        sums.block[index, kind] = self.loss.nll(ids)
            with self.loss.without(index):
                sums.layer[index] = self.loss.nll(ids)
        return sums

    def result(self, total: _Sums, num_windows: int, seq_len: int) -> Prior:
        tokens = num_windows * (seq_len - 1)
        return Prior(
            block=(total.block - total.dense) / tokens,
            layer=(total.layer - total.dense) / tokens,
            method="loss",
            num_windows=num_windows,
            dense_nll=total.dense / tokens,
        )


class _SimilarityPrior:
    """Hooks read the residual stream where a layer begins, between its blocks and where it ends."""

    def __init__(self, model: Any, family: Family, handles: list[Any]) -> None:
        self.model = model
        self.layers = list(model.get_submodule(family.layers))
        self.sums = _Sums(len(self.layers))
        for index, layer in enumerate(self.layers):
            stream: dict[str, torch.Tensor] = {}
            handles += [
                layer.register_forward_pre_hook(lambda _module, args, s=stream: s.__setitem__("before", args[0])),
                layer.get_submodule(family.pre_mlp_norm).register_forward_pre_hook(
                    lambda _module, args, s=stream: s.__setitem__("between", args[0])
                ),
                layer.register_forward_hook(
                    lambda _module, _args, output, s=stream, i=index: self._compare(i, s, output)
                ),
            ]

    def _compare(self, index: int, stream: dict[str, torch.Tensor], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        self.sums.block[index, 0] += _distance(stream["before"], stream["between"])
        self.sums.block[index, 1] += _distance(stream["between"], after)
        self.sums.layer[index] += _distance(stream["before"], after)
        stream.clear()

    def batch(self, ids: torch.Tensor) -> _Sums:
        self.sums = _Sums(len(self.layers))
        self.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return self.sums

    def result(self, total: _Sums, num_windows: int, seq_len: int) -> Prior:
        tokens = num_windows * seq_len
        return Prior(total.block / tokens, total.layer / tokens, "similarity", num_windows)


def _distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """Sum over tokens of 1 - cosine; float64, because the cosine of neighbouring layers is close to 1."""
    return float((1.0 - F.cosine_similarity(before.double(), after.double(), dim=-1)).clamp_min(0.0).sum())


@contextmanager
def _silenced(block: nn.Module, is_attention: bool) -> Iterator[None]:
    """The block computes nothing and adds zero to the residual stream."""

    def nothing(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if is_attention else zeros

    try:
        block.forward = nothing
        yield
    finally:
        block.__dict__.pop("forward", None)
