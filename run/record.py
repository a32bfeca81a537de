"""``run.json``: what was asked, where it ran, how long each stage took. Written last, so it marks a finished run."""

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from core import ranks
from core.say import say
from core.windows import TokenWindows

SCHEMA_VERSION = 1
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets", "lm-eval")


class Stages:
    """Wall-clock seconds of each stage, in the order they ran; a line when one begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, quietly: bool = False) -> Iterator[None]:
        if not quietly:  # what only checks stays silent, so that a refusal is one line
            say(f"[{name}]")
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_record(
    asked: dict[str, Any],
    resolved: dict[str, Any],
    stages: Stages,
    device: Any,
    windows: dict[str, TokenWindows],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The content of run.json. asked: options as parsed. resolved: as resolved for this model and machine.

    facts: anything else worth keeping (skipped windows, ...).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "asked": asked,
        "options": resolved,
        "environment": environment(device),
        "seeds": {"seed": resolved["seed"]},
        "windows": {
            name: {
                "dataset": item.dataset,
                "split": item.split,
                "num_windows": len(item),
                "seq_len": item.seq_len,
                "source": item.source,
                "sha256": item.fingerprint,
            }
            for name, item in windows.items()
        },
        "facts": facts,
        "timings_s": {name: round(seconds, 3) for name, seconds in stages.seconds.items()},
        "peak_memory_bytes": peak_memory(device),
    }


def environment(device: Any) -> dict[str, Any]:
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
    }


def installed(package: str) -> str | None:
    """Its version; None where it is not installed, which a run that does without it need not mind."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory(device: Any) -> dict[str, int]:
    """Largest resident size of the process and, on a GPU, the largest allocation; bytes."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    return peak
