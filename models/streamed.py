"""The streamed engine: a model whose weights come from the checkpoint when they are needed and go when they are not.

The model is the family's own class with every parameter on the meta device and every buffer real. A module without
its weights reads them for the time of its own forward, so the model runs like any other; a layer that is visited has
all of them for as long as the visit lasts, while a thread reads the next one. Beside a GPU the thread also sends them
there, on a stream of its own from pinned memory. Files are read through the system's cache, so weights that fit into
free memory are read from the disk once.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from models.away import WeightsAway


class StreamedWeights(WeightsAway):
    """``model`` runs with the weights of ``tensors``, a layer of which is held at a time."""

    def __init__(self, *given: Any, **more: Any) -> None:
        """As ``WeightsAway``."""
        super().__init__(*given, **more)
        self._empty = {module: dict(module._parameters) for module in self._modules.values()}
        self._held: set[nn.Module] = set()  # not to be emptied after their own forward
        self._keeps = False
        self._reader = ThreadPoolExecutor(1, "weights")
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        for module in self._modules.values():
            module.register_forward_pre_hook(self._come)
            module.register_forward_hook(self._go, always_call=True)

    def visit(self, layers: Iterable[int]) -> Iterator[int]:
        order = list(layers)
        coming = self._ask_for(order, 0)
        for place, layer in enumerate(order):
            modules = self._of_layer(layer)
            try:
                self._held.update(modules)
                assert coming is not None
                self._fill(coming.result())
                coming = self._ask_for(order, place + 1)
                yield layer
            finally:
                self._held.difference_update(modules)
                for module in modules:
                    self._drop(module)

    @contextmanager
    def keeping(self, module: Any) -> Iterator[None]:
        before, self._keeps = self._keeps, True
        try:
            yield
        finally:
            self._keeps = before
            for every in set(self._modules.values()) - self._held:
                self._drop(every)

    @contextmanager
    def at_hand(self, module: Any) -> Iterator[None]:
        self._come(module, None)
        try:
            yield
        finally:
            self._go(module, None, None)

    @torch.no_grad()
    def changed(self, modules: Iterable[Any]) -> None:
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self.tensors.replace(self._source(module, name), parameter.to(self._keeps_in or parameter.dtype))

    @contextmanager
    def restoring(self, parameters: Iterable[Any]) -> Iterator[None]:
        with self.tensors.restored():
            yield

    # Weights come and go

    def _of_layer(self, layer: int) -> list[nn.Module]:
        prefix = f"{self.family.layers}.{layer}."
        return [module for path, module in self._modules.items() if path.startswith(prefix)]

    def _ask_for(self, order: list[int], place: int) -> "Future[_Arrived] | None":
        if place >= len(order):
            return None
        wanted = [(module, name) for module in self._of_layer(order[place]) for name in self._empty[module]]
        return self._reader.submit(self._read, wanted)

    def _read(self, wanted: list[tuple[nn.Module, str]]) -> "_Arrived":
        """In the thread: as stored on the CPU, or on its way to the GPU."""
        found = {}
        for module, name in wanted:
            if self._empty[module][name] is not None:
                found[module, name] = self.tensors[self._source(module, name)]
        if self._copies is None:
            return _Arrived(found, None)
        with torch.cuda.stream(self._copies):
            sent = {key: self._sent(*key, tensor.pin_memory()) for key, tensor in found.items()}
            return _Arrived(sent, self._copies.record_event())

    def _fill(self, arrived: "_Arrived") -> None:
        if arrived.event is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived.event)
        for module, name in list(arrived.tensors):
            tensor = self._sent(module, name, arrived.tensors.pop((module, name)))
            self._check(self._source(module, name), tensor)
            if arrived.event is not None:
                tensor.record_stream(torch.cuda.current_stream(self.device))
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)

    def _sent(self, module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """On the device, in the dtype that the module computes in."""
        empty = self._empty[module][name]
        assert empty is not None
        return tensor.to(self.device, non_blocking=True).to(empty.dtype)

    def _come(self, module: nn.Module, _args: Any) -> None:
        if next(parameter for parameter in module._parameters.values() if parameter is not None).is_meta:
            self._fill(self._read([(module, name) for name in self._empty[module]]))

    def _go(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if module not in self._held and not self._keeps:
            self._drop(module)

    def _drop(self, module: nn.Module) -> None:
        module._parameters.update(self._empty[module])


class _Arrived:
    """tensors: by module and name. event: when they are on the GPU; None where there is none."""

    def __init__(self, tensors: dict[tuple[nn.Module, str], torch.Tensor], event: Any) -> None:
        self.tensors, self.event = tensors, event
