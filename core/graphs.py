"""Work on a GPU that is launched once and replayed.

A small kernel computes for a few microseconds and takes the host as long to launch, or several times that on a machine
that is slow to launch. What is done again and again with tensors of one shape is therefore captured as a CUDA graph: a
replay is a single launch. It reads and writes the same memory each time.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Captured(Generic[T]):
    """``work`` as a graph. result: what it returned, tensors that each replay writes anew."""

    result: T

    def __init__(self, work: Callable[[], T], device: torch.device, warm_up: Callable[[], object]) -> None:
        """``warm_up`` runs first: kernels are loaded when they are first launched, and libraries find room to work in.
        Then ``work`` is captured, which computes nothing yet and may not wait for the device. RuntimeError where that
        is not possible, or memory does not suffice."""
        self._graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            warm_up()
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.result = work()
            except BaseException:
                with suppress(RuntimeError):  # of the capture that was broken off, which would hide why
                    self._graph.capture_end()
                raise
            self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def replay(self) -> None:
        self._graph.replay()


def launches_are_dear(device: torch.device) -> bool:
    return device.type == "cuda"
