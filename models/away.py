"""What engines share whose weights are away: the tensors they come from, and where hidden states rest meanwhile."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.engine import Engine, bind
from core.families import Family
from core.memory import RESTING_SHARE, free_bytes, has_room
from core.resting import TensorFile
from models.rounding import check_tensor_finite
from models.tensors import tied_names

CPU = torch.device("cpu")
DISK_SHARE = 0.9  # of what a disk has left, for streams that rest there


class WeightsAway(Engine):
    """``model`` is to run with the weights of ``tensors``, which are asked for by name and rounded to its dtypes.

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
        self._paths = {module: path for path, module in self._modules.items()}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        bind(model, self)

    @property
    def device(self) -> torch.device:
        return self._device

    def _source(self, module: torch.nn.Module, name: str) -> str:
        return self._sources[f"{self._paths[module]}.{name}"]

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self._finite:
            check_tensor_finite(name, tensor)
            self._finite.add(name)

    # Where hidden states rest

    def has_room(self, needed_bytes: int, device: Any, beside: int = 0) -> bool:
        """Main memory is not for resting where the user named a folder for it."""
        return not (self.scratch and device.type == "cpu") and has_room(needed_bytes, device, beside)

    def fits(self, needed_bytes: int) -> bool:
        return self.has_room(needed_bytes, self.device) or needed_bytes <= self._elsewhere()

    def _elsewhere(self) -> float:
        """Bytes that may rest beside the device: in main memory, else in files."""
        in_memory = 0.0 if self.scratch else RESTING_SHARE * (free_bytes() or 0)
        return max(in_memory, DISK_SHARE * shutil.disk_usage(self._folder).free)

    def scratch_for(self, needed_bytes: int) -> Path | None:
        return None if has_room(needed_bytes, CPU) and not self.scratch else self._folder


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
