"""What rests in files while weights and hidden states come and go. torch is imported where it is used.

The files have no name (or, where a system knows no such files, go with their process), so nothing is left of them
however the process ends. Their pages are the system's to keep or to write, and count as no memory of this process.
"""

import math
import tempfile
import weakref
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from core.errors import OutputError, UsageError, reason_of

if TYPE_CHECKING:
    import torch


def check_scratch(folder: Path) -> None:
    """UsageError, one line, where files cannot rest in ``folder``."""
    if not folder.is_dir():
        raise UsageError(f"--scratch {folder} is not a folder; give one that exists")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"--scratch {folder} takes no file ({error.strerror}); give a folder that can be written"
        ) from error


class _File:
    """Tensors at offsets, in bytes. Raises OutputError, one line, where the disk refuses. Threads take turns."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.turn = folder, Lock()
        try:
            self.file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see below
        except OSError as error:
            raise self._refused(error) from error
        weakref.finalize(self, self.file.close)  # gives the disk back as soon as nobody asks for it any more

    def read(self, offset: int, shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
        """A tensor of its own on the CPU."""
        import torch

        values = torch.empty(shape, dtype=dtype)
        left = _bytes(values)
        try:
            with self.turn:
                self.file.seek(offset)
                while len(left):
                    count = self.file.readinto(left)
                    if not count:
                        raise OSError(None, "it ends before its values do")
                    left = left[count:]
        except OSError as error:
            raise self._refused(error) from error
        return values

    def write(self, offset: int, values: "torch.Tensor") -> None:
        """values: on the CPU and contiguous."""
        left = _bytes(values)
        try:
            with self.turn:
                self.file.seek(offset)
                while len(left):
                    left = left[self.file.write(left) :]
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.folder} takes no more of what streaming keeps there ({reason_of(error)}); free some, or give "
            "--scratch a folder on another disk"
        )


class FileStream:
    """(N, T, ...) in one dtype: ``stream[rows]`` reads consecutive windows, ``stream[rows] = values`` writes them."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: "torch.dtype") -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.file = _File(folder)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "torch.Tensor":
        start, stop, _ = rows.indices(len(self))
        return self.file.read(start * self.row_bytes, (stop - start, *self.shape[1:]), self.dtype)

    def __setitem__(self, rows: slice, values: "torch.Tensor") -> None:
        start, stop, _ = rows.indices(len(self))
        if tuple(values.shape) != (stop - start, *self.shape[1:]):
            raise ValueError(f"values of shape {tuple(values.shape)} for windows {start} to {stop} of {self.shape}")
        self.file.write(start * self.row_bytes, values.detach().to("cpu", self.dtype).contiguous())


class TensorFile:
    """Tensors by name, the last one of each name; ``back_to`` forgets all that came after ``mark``."""

    def __init__(self, folder: Path) -> None:
        self.file, self.end = _File(folder), 0
        self.places: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> "torch.Tensor":
        return self.file.read(*self.places[name])

    def __setitem__(self, name: str, values: "torch.Tensor") -> None:
        values = values.detach().cpu().contiguous()
        self.file.write(self.end, values)
        self.places[name] = self.end, tuple(values.shape), values.dtype
        self.end += values.nbytes

    @property
    def mark(self) -> Any:
        return self.end, dict(self.places)

    def back_to(self, mark: Any) -> None:
        self.end, self.places = mark
        self.file.file.truncate(self.end)


def _bytes(values: "torch.Tensor") -> memoryview:
    import torch

    return values.reshape(-1).view(torch.uint8).numpy().data
