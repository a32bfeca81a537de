"""Seconds, peak memory, launches and waits of a step; the rate at which this device multiplies matrices."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


@dataclass(frozen=True)
class Timed:
    """peak_bytes: the largest allocation on a GPU; None elsewhere."""

    seconds: float
    peak_bytes: int | None


def timed(step: Callable[[], Any], device: torch.device) -> Timed:
    """One call, everything it launched included."""
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    step()
    wait(device)
    seconds = time.perf_counter() - start
    return Timed(seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def launches_and_waits(step: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """Kernels that a call launches and how often the host waits for the device, by torch's profiler.

    Without a GPU: operators that would launch one (views do not), and values handed to Python.
    """
    if device.type != "cuda":
        with _Operators() as counted:
            step()
        return counted.launches, counted.waits
    own = 1  # the wait below
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        step()
        wait(device)
    results = (
        profile.profiler.kineto_results
    )  # the events as they come: to make a tree of them takes longer than the step
    counts = Counter(event.name() for event in results.events())
    return sum(counts[name] for name in LAUNCHES), max(0, sum(counts[name] for name in WAITS) - own)


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += function is torch.ops.aten._local_scalar_dense.default
        self.launches += not function.is_view
        return function(*args, **(kwargs or {}))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of one large product, the best of five."""
    size, best = (8192 if device.type == "cuda" else 512), 0.0
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    for _ in range(5):
        best = max(best, 2 * size**3 / timed(lambda: a @ b, device).seconds)
    return best
