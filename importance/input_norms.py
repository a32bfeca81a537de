"""Squares of what ``o_proj`` and ``down_proj`` read, summed over tokens, for wanda and the search for outliers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from core.families import Family, Member
from importance.over_windows import Key, Measurement
from importance.passes import Batch
from importance.sums import output_projections


class InputSquares(Measurement):
    """total, even: float64 (n,) by block, over the tokens of all windows and of the even ones.

    Squares are summed in float32 inside a batch and in float64 across batches.
    """

    scales = True

    def __init__(self, model: Any, family: Family, kinds: tuple[int, ...] = (0, 1)) -> None:
        self.outputs = [found for found in output_projections(model, family) if found[1].kind in kinds]
        self.sees = "inputs of " + " and ".join(dict.fromkeys(member.path for _, member, _ in self.outputs))
        self.layers = sorted({layer for layer, _, _ in self.outputs})
        self.total: dict[Key, torch.Tensor] = {}
        self.even: dict[Key, torch.Tensor] = {}
        self.squares: dict[Key, tuple[torch.Tensor, torch.Tensor]] = {}
        self.batch: Batch | None = None

    def begin(self, layer: int) -> None:
        for member, module in self.of_layer(layer):
            for sums in (self.total, self.even):
                sums[layer, member.kind] = torch.zeros(
                    module.in_features, dtype=torch.float64, device=module.weight.device
                )

    def of_layer(self, layer: int) -> list[tuple[Member, nn.Linear]]:
        """The modules of one layer whose inputs are summed."""
        return [(member, module) for index, member, module in self.outputs if index == layer]

    def attach(self, handles: list[Any]) -> None:
        for layer, member, module in self.outputs:
            key = layer, member.kind
            handles.append(module.register_forward_pre_hook(lambda _module, args, key=key: self._watch(key, args[0])))

    def _watch(self, key: Key, inputs: torch.Tensor) -> None:
        assert self.batch is not None
        inputs = inputs.float() if self.batch.scale == 1 else inputs.float() * self.batch.scale
        squares = inputs.square()
        self.squares[key] = squares.sum((0, 1)), squares[self.batch.half(0)].sum((0, 1))

    def start(self, batch: Batch) -> None:
        self.squares.clear()
        self.batch = batch

    def seen(self) -> Iterable[tuple[int, torch.Tensor]]:
        return ((layer, total) for (layer, _), (total, _) in self.squares.items())

    def keep(self, batch: Batch) -> None:
        for key, (total, even) in self.squares.items():
            self.total[key].add_(total.double(), alpha=batch.scale**-2)
            self.even[key].add_(even.double(), alpha=batch.scale**-2)

    def sums(self, layer: int | None) -> Iterable[torch.Tensor]:
        return (sums[key] for sums in (self.total, self.even) for key in sorted(sums) if key[0] == layer)
