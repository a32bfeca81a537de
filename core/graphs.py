"""Work on a GPU that is launched once and replayed.

A small kernel computes for a few microseconds and takes the host as long to launch, or several times that on a machine
that is slow to launch. What is done again and again with tensors of one shape is therefore captured as a CUDA graph: a
replay is a single launch. It reads and writes the same memory each time.

A capture that breaks off leaves torch's allocator without the means to give memory back (torch 2.11 and 2.12). So work
that waits for the device, which breaks a capture, is found out before; and once one broke, none is begun any more.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import torch

from core.batching import is_out_of_memory

T = TypeVar("T")
# transformers looks whether windows are packed, and whether a mask says nothing, but not while a stream captures.
NOT_WHILE_CAPTURING = "masking_utils.py"
_BROKEN: list[str] = []


class CannotCaptureError(RuntimeError):
    """Nothing was captured, and nothing is broken."""


class Captured(Generic[T]):
    """``work`` as a graph. result: what it returned, tensors that each replay writes anew."""

    result: T

    def __init__(
        self, work: Callable[[], T], device: torch.device, warm_up: Callable[[], object], *, takes_memory: bool = True
    ) -> None:
        """``warm_up`` launches what ``work`` launches, and runs twice before. The first time kernels are loaded and
        libraries find room to work in; a cache, too, may wait for the device while it is made. Then ``work`` is
        captured, which computes nothing yet. takes_memory: whether it makes tensors. RuntimeError where it cannot be
        captured, or memory does not suffice."""
        self._graph, stream, current = torch.cuda.CUDAGraph(), _stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # said again by what follows, where it is said at all
                    warm_up()
                with _waits_found() as waits:
                    warm_up()
                if waits:
                    raise CannotCaptureError(f"it waits for the device in {waits[0]}")
                if takes_memory:
                    torch.cuda.empty_cache()  # the graph has memory of its own, and none is given back meanwhile
                self._capture(work)
        finally:
            current.wait_stream(stream)

    def replay(self) -> None:
        self._graph.replay()

    def _capture(self, work: Callable[[], T]) -> None:
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            self.result = work()
        except BaseException as error:
            if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):
                _BROKEN.append(str(error))
            with suppress(RuntimeError):  # of the capture that was broken off, which would hide why
                self._graph.capture_end()
            raise
        self._graph.capture_end()


def worth_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and not _BROKEN


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep memory for every stream that they have worked on."""
    return torch.cuda.Stream(device)


@contextmanager
def _waits_found() -> Iterator[list[str]]:
    """Afterwards the list has the file and line of every wait for the device inside."""
    found: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    waits = [note for note in said if "synchronizing CUDA operation" in str(note.message)]
    found += [f"{note.filename}:{note.lineno}" for note in waits if Path(note.filename).name != NOT_WHILE_CAPTURING]
