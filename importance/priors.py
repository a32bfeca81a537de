"""Priors: what the model loses when one block, or one whole layer, is taken away.

    loss        Delta = NLL(block's output replaced by zero) - NLL(dense), nats per token; the residual stream passes
    similarity  1 - cosine between the residual stream before and after the block, mean over tokens (one pass)

For ``loss`` a variant starts from the input that its layer had in the dense pass (``prefixes``), so the 3 L variants
cost about half of 3 L passes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from core.engine import engine_of
from core.errors import NumericalError
from core.families import Family
from core.measured import Prior
from core.windows import TokenWindows
from importance.over_windows import Measurement, on_host, over_windows
from importance.passes import Batch, Forward
from importance.prefixes import PrefixedLoss, Variants

Columns = dict[tuple[int, int], torch.Tensor]  # layer and column (attention, mlp, the whole layer) -> float64 ()


def measure_prior(
    model: Any, family: Family, windows: TokenWindows, *, method: str = "loss", batch_size: int | None = None
) -> Prior:
    """Measure every block and layer on all given windows (calibration, never evaluation text).

    Raises NumericalError when more than 5 % of the windows yield NaN or Inf, or the
    loss without a block does.
    """
    measure = _LossPrior(model, family) if method == "loss" else _SimilarityPrior(model, family)
    name = f"prior ({method})"
    tally = over_windows(model, windows, measure.run, measure, batch_size=batch_size, description=name)
    table, dense = measure.result(tally.used, windows.seq_len)
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if len(bad):
        raise NumericalError(f"the prior of layer {bad[0]} is NaN or Inf; try --dtype float32 or --prior similarity")
    return Prior(table[:, :2], table[:, 2], method, tally.used, dense)


class _Sums(Measurement):
    """found: of a batch. total: of all that count, on one device."""

    def __init__(self, model: Any, family: Family) -> None:
        self.family, self.modules = family, list(model.get_submodule(family.layers))
        self.layers, self.device = range(len(self.modules)), engine_of(model).device
        self.found: Columns = {}
        self.total: Columns = {}

    def begin(self, layer: int) -> None:
        for column in range(3):
            self.total[layer, column] = torch.zeros((), dtype=torch.float64, device=self.device)

    def start(self, batch: Batch) -> None:
        self.found.clear()

    def keep(self, batch: Batch) -> None:
        for key, value in self.found.items():
            self.total[key] += value.to(self.device)

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        return (self.total[key] for key in sorted(self.total) if key[0] == layer)

    def table(self) -> np.ndarray:
        """float64 (L, 3)."""
        keys = sorted(self.total)
        return np.array(on_host([self.total[key][None] for key in keys])).reshape(-1, 3)


class _LossPrior(_Sums):
    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self.loss = PrefixedLoss(model, family)
        self.variants = [
            variant for index, layer in enumerate(self.modules) for variant in self._of_layer(index, layer)
        ]
        self.run = Forward(model, self._compare, streams=len(self.variants) + 1)
        self.dense = torch.zeros((), dtype=torch.float64, device=self.device)
        self.dense_of_batch = self.dense

    def _of_layer(self, index: int, layer: Any) -> Variants:
        """Without attention, without the MLP, without the layer."""
        attention, mlp = layer.get_submodule(self.family.attention), layer.get_submodule(self.family.mlp)
        return [
            ((index, 0), partial(_silenced, attention, is_attention=True)),
            ((index, 1), partial(_silenced, mlp, is_attention=False)),
            ((index, 2), None),
        ]

    def _compare(self, ids: torch.Tensor) -> torch.Tensor:
        """Summed NLL of the dense model, which is returned, and of every variant."""
        self.dense_of_batch, self.found = self.loss.of(ids, self.variants)
        return self.dense_of_batch

    def keep(self, batch: Batch) -> None:
        super().keep(batch)
        self.dense += self.dense_of_batch.to(self.device)

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        return super().sums(layer) if layer is not None else [self.dense]

    def result(self, num_windows: int, seq_len: int) -> tuple[np.ndarray, float | None]:
        """Columns in nats per token, float64 (L, 3), and the dense model's loss."""
        tokens, dense = num_windows * (seq_len - 1), float(self.dense)
        return (self.table() - dense) / tokens, dense / tokens


class _SimilarityPrior(_Sums):
    """Hooks read the residual stream where a layer begins, between its blocks and where it ends."""

    sees = "residual stream"

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self.run = Forward(model)

    def attach(self, handles: list[Any]) -> None:
        for index, layer in enumerate(self.modules):
            stream: dict[str, torch.Tensor] = {}
            handles += [
                layer.register_forward_pre_hook(lambda _module, args, s=stream: s.__setitem__("before", args[0])),
                layer.get_submodule(self.family.pre_mlp_norm).register_forward_pre_hook(
                    lambda _module, args, s=stream: s.__setitem__("between", args[0])
                ),
                layer.register_forward_hook(
                    lambda _module, _args, output, s=stream, i=index: self._compare(i, s, output)
                ),
            ]

    def _compare(self, index: int, stream: dict[str, torch.Tensor], output: Any) -> None:
        if "between" not in stream:  # the layer was bypassed
            return
        after = output[0] if isinstance(output, tuple) else output
        self.found[index, 0] = _distance(stream["before"], stream["between"])
        self.found[index, 1] = _distance(stream["between"], after)
        self.found[index, 2] = _distance(stream["before"], after)
        stream.clear()

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        return ((layer, value) for (layer, _), value in self.found.items())

    def result(self, num_windows: int, seq_len: int) -> tuple[np.ndarray, float | None]:
        """Columns as means over tokens, float64 (L, 3)."""
        return self.table() / (num_windows * seq_len), None


def _distance(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of 1 - cosine, (); float64, because the cosine of neighbouring layers is close to 1."""
    return (1.0 - F.cosine_similarity(before.double(), after.double(), dim=-1)).clamp_min(0.0).sum()


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
