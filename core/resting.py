"""Values of all windows that rest in a file, read and written a few windows at a time. torch is imported where used."""

import math
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import OutputError, reason_of

if TYPE_CHECKING:
    import torch


class FileStream:
    """(N, T, ...) in one dtype: ``stream[rows]`` reads consecutive windows, ``stream[rows] = values`` writes them.

    The file has no name (or, where a system knows no such files, goes with its process), so nothing is left of it
    however the process ends. Its pages are the system's to keep or to write, and count as no memory of this process.
    Raises OutputError, one line, where the disk refuses.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: "torch.dtype") -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        try:
            self.file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see below
        except OSError as error:
            raise self._refused(error) from error
        weakref.finalize(self, self.file.close)  # gives the disk back as soon as nobody asks for the values any more

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "torch.Tensor":
        """A tensor of its own on the CPU."""
        import torch

        start, stop, _ = rows.indices(len(self))
        values = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        try:
            self.file.seek(start * self.row_bytes)
            left = _bytes(values)
            while len(left):
                count = self.file.readinto(left)
                if not count:
                    raise OSError(None, "it ends before its values do")
                left = left[count:]
        except OSError as error:
            raise self._refused(error) from error
        return values

    def __setitem__(self, rows: slice, values: "torch.Tensor") -> None:
        start, stop, _ = rows.indices(len(self))
        if tuple(values.shape) != (stop - start, *self.shape[1:]):
            raise ValueError(f"values of shape {tuple(values.shape)} for windows {start} to {stop} of {self.shape}")
        try:
            self.file.seek(start * self.row_bytes)
            left = _bytes(values.detach().to("cpu", self.dtype).contiguous())
            while len(left):
                left = left[self.file.write(left) :]
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.folder} takes no more of what streaming keeps there ({reason_of(error)}); free some, or give "
            "--scratch a folder on another disk"
        )


def _bytes(values: "torch.Tensor") -> memoryview:
    import torch

    return values.reshape(-1).view(torch.uint8).numpy().data
