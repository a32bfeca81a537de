"""The loss of many variants of one model that differ from it in a single layer.

The dense pass of a batch keeps the input of every layer. A variant that changes layer l starts from there, so a variant
of each of the L layers costs about half of L passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from core.families import Family
from core.layers import bypassed
from importance.sums import token_nll


class PrefixedLoss:
    """Use it inside ``left_as_found`` and without gradients; one ``dense_pass`` a batch, then its variants."""

    def __init__(self, model: Any, family: Family) -> None:
        self.model = model
        self.layers = list(model.get_submodule(family.layers))
        self._inputs: list[torch.Tensor] = []

    def dense_pass(self, ids: torch.Tensor) -> torch.Tensor:
        """Summed NLL of the model as it is, nats, float64 (); ids int64 (B, T)."""
        self._inputs = []
        handles = [
            layer.register_forward_pre_hook(lambda _module, args: self._inputs.append(args[0])) for layer in self.layers
        ]
        try:
            return self.nll(ids)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def starting_at(self, index: int) -> Iterator[None]:
        """Inside, layer ``index`` receives what it did in the dense pass, and the layers before it are not run."""
        with bypassed(self.layers[:index], restart=self._inputs[index]):
            yield

    @contextmanager
    def without(self, index: int) -> Iterator[None]:
        """Inside, what layer ``index`` received goes past it to the next one."""
        with bypassed(self.layers[: index + 1], restart=self._inputs[index]):
            yield

    def nll(self, ids: torch.Tensor) -> torch.Tensor:
        """Summed NLL, nats, float64 () on the device: the host need not wait for it."""
        return token_nll(self.model(input_ids=ids, use_cache=False).logits, ids).double().sum()
