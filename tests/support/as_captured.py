"""Graphs of a GPU, done here: what would be replayed is computed again, with masks as transformers makes them there.

A graph reads and writes the memory that it was captured with. So whoever owns the work has to keep its tensors where
they are, and what a replay finds is copied to where the first one left it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers.masking_utils
from operators import Operators


class Replayed:
    """In place of ``core.graphs.Captured``."""

    captures = 0
    result: Any = None

    def __init__(
        self, work: Callable[[], Any], device: torch.device, warm_up: Callable[[], object], takes_memory: bool = True
    ) -> None:
        with as_while_capturing():
            warm_up()
            warm_up()
        self.work, self.owner = work, work.__self__  # type: ignore[attr-defined]
        self.places: list[int] = places_of(self.owner)
        self.attention = [(model, model.config._attn_implementation) for model in models_of(self.owner)]
        Replayed.captures += 1

    def replay(self) -> None:
        assert places_of(self.owner) == self.places
        before = [(model, model.config._attn_implementation) for model, _ in self.attention]
        for model, kind in self.attention:
            model.set_attn_implementation(kind)
        with as_while_capturing(), Operators() as operators:
            found = self.work()
        assert operators.waits == 0
        assert not operators.seen["aten.lift_fresh.default"]  # of a tensor made of numbers of Python's, and then sent
        for model, kind in before:
            model.set_attn_implementation(kind)
        assert places_of(self.owner) == self.places
        self.result = found if self.result is None else self.result.copy_(found)


def models_of(owner: Any) -> list[Any]:
    return [*owner.models] if hasattr(owner, "models") else [owner.model]


def places_of(owner: Any) -> list[int]:
    """Where all tensors lie that the owner of the work holds, its cache and gradients included."""
    values = [value for name, value in sorted(vars(owner).items()) if name not in ("graph", "model", "models")]
    return [tensor.data_ptr() for value in values for tensor in _tensors(value)]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.nn.Parameter):
        yield value
        assert value.grad is not None
        yield value.grad
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _tensors(each)
    elif hasattr(value, "layers"):
        yield from (kept for layer in value.layers for kept in (layer.keys, layer.values, layer.cumulative_length))


@contextmanager
def as_while_capturing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(transformers.masking_utils, "is_tracing", lambda _tensor=None: True)
        yield


@pytest.fixture
def as_captured(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """Inside, launches are dear."""
    from core import one_at_a_time
    from pruning.recovery import captured_step, trainer

    Replayed.captures = 0
    for module in (one_at_a_time, trainer):
        monkeypatch.setattr(module, "worth_capturing", lambda _device: True)
    for module in (one_at_a_time, captured_step):
        monkeypatch.setattr(module, "Captured", Replayed)
    return Replayed
