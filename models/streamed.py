"""The streamed engine: a model whose weights come from the checkpoint when they are needed and go when they are not.

The model is the family's own class with every parameter on the meta device and every buffer real. A module without
its weights reads them for the time of its own forward, so the model runs like any other; a layer that is visited has
all of them for as long as the visit lasts, while a thread reads the next one. Beside a GPU the thread also sends them
there, on a stream of its own from pinned memory. Files are read through the system's cache, so weights that fit into
free memory are read from the disk once.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.engine import Engine, bind
from core.families import Family
from core.memory import RESTING_SHARE, free_bytes, has_room
from core.resting import TensorFile
from models.rounding import check_tensor_finite
from models.tensors import tied_names

DISK_SHARE = 0.9  # of what a disk has left, for streams that rest there


class StreamedWeights(Engine):
    """``model`` runs with the weights of ``tensors``, which are asked for by name and rounded to the model's dtypes.

    model: empty (``models.loading.hollow_model``); its buffers are moved to ``device``. tensors: by the names of its
    state dict, one name for tied ones; whoever asks may write to what it gets. scratch: a folder for what rests while
    weights come and go; None: main memory, and where that is short files in ``beside`` (None: the system's folder for
    temporary files). keeps_in: the dtype in which changed weights are kept, the one that they will be saved in and are
    exact in; None: the model's.
    Raises NumericalError for the first weight that is NaN or Inf, when it is read.
    """

    streams = True

    def __init__(
        self,
        model: Any,
        family: Family,
        tensors: Mapping[str, torch.Tensor],
        device: torch.device,
        scratch: Path | None = None,
        beside: Path | None = None,
        keeps_in: torch.dtype | None = None,
    ) -> None:
        super().__init__(model)
        self.family, self.scratch, self._device = family, scratch, device
        self._folder = scratch or beside or Path(tempfile.gettempdir())
        self.tensors, self._keeps_in = Changed(tensors, self._folder), keeps_in
        self._finite: set[str] = set()  # tensors that were found to be
        self._sources = {name: names[0] for names in tied_names(model) for name in names}
        self._modules = {path: module for path, module in model.named_modules() if module._parameters}
        self._empty = {module: dict(module._parameters) for module in self._modules.values()}
        self._paths = {module: path for path, module in self._modules.items()}
        self._held: set[nn.Module] = set()  # not to be emptied after their own forward
        self._keeps = False
        self._reader = ThreadPoolExecutor(1, "weights")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        for module in self._modules.values():
            module.register_forward_pre_hook(self._come)
            module.register_forward_hook(self._go, always_call=True)
        bind(model, self)

    @property
    def device(self) -> torch.device:
        return self._device

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
    def keeping(self) -> Iterator[None]:
        before, self._keeps = self._keeps, True
        try:
            yield
        finally:
            self._keeps = before
            for module in set(self._modules.values()) - self._held:
                self._drop(module)

    @contextmanager
    def at_hand(self, module: Any) -> Iterator[None]:
        self._come(module, None)
        try:
            yield
        finally:
            self._go(module, None, None)

    def has_room(self, needed_bytes: int, device: Any) -> bool:
        """Main memory is not for resting where the user named a folder for it."""
        return not (self.scratch and device.type == "cpu") and has_room(needed_bytes, device)

    def fits(self, needed_bytes: int) -> bool:
        return self.has_room(needed_bytes, self.device) or needed_bytes <= self._elsewhere()

    def _elsewhere(self) -> float:
        """Bytes that may rest beside the device: in main memory, else in files."""
        in_memory = 0.0 if self.scratch else RESTING_SHARE * (free_bytes() or 0)
        return max(in_memory, DISK_SHARE * shutil.disk_usage(self._folder).free)

    def scratch_for(self, needed_bytes: int) -> Path | None:
        return None if has_room(needed_bytes, CPU) and not self.scratch else self._folder

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

    def _source(self, module: nn.Module, name: str) -> str:
        return self._sources[f"{self._paths[module]}.{name}"]

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self._finite:
            check_tensor_finite(name, tensor)
            self._finite.add(name)

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


class Changed(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint, those that were replaced as they are now."""

    def __init__(self, stored: Mapping[str, torch.Tensor], folder: Path) -> None:
        self.stored, self.folder = stored, folder
        self._file: TensorFile | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        replaced = self._file is not None and name in self._file
        return self._file[name] if replaced and self._file is not None else self.stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def replace(self, name: str, tensor: torch.Tensor) -> None:
        if self._file is None:
            self._file = TensorFile(self.folder)
        self._file[name] = tensor

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Afterwards the tensors are those of now."""
        if self._file is None:
            self._file = TensorFile(self.folder)
        mark = self._file.mark
        try:
            yield
        finally:
            self._file.back_to(mark)


class _Arrived:
    """tensors: by module and name. event: when they are on the GPU; None where there is none."""

    def __init__(self, tensors: dict[tuple[nn.Module, str], torch.Tensor], event: Any) -> None:
        self.tensors, self.event = tensors, event


CPU = torch.device("cpu")
