"""``run.json``: what was asked, where it ran, how long each stage took. Written last, so it marks a finished run."""

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.windows import TokenWindows

SCHEMA_VERSION = 1
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets", "lm-eval")


class Stages:
    """Wall-clock seconds of each stage, in the order they ran; a line on stderr when one begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, quietly: bool = False) -> Iterator[None]:
        if not quietly:  # what only checks stays silent, so that a refusal is one line
            print(f"[{name}]", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_record(
    asked: dict[str, Any],
    options: dict[str, Any],
    stages: Stages,
    device: Any,
    windows: dict[str, TokenWindows],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The content of run.json. asked: options as parsed. options: as resolved for this model and machine.

    facts: anything else worth keeping (skipped windows, ...).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "asked": asked,
        "options": options,
        "environment": environment(device),
        "seeds": {"seed": options["seed"]},
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
        "packages": {name: version(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: Any) -> dict[str, int]:
    """Largest resident size of the process and, on a GPU, the largest allocation; bytes."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    return peak


def resolved(options: Any) -> dict[str, Any]:
    """Options as plain values, in the order of --help; how they were typed does not matter."""
    internal = {"given", "argv", "measures", "measures_on_text", "tasks", "reconstructs", "staging"}
    values = {name: value for name, value in vars(options).items() if name not in internal}
    values["run_evaluation"] = sorted(options.measures) or ["none"]
    values["eval_tasks"] = options.tasks
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
