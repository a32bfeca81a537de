"""What importance costs next to a plain backward pass: time and peak memory, each variant in a process of its own.

    python -m benchmarks.importance                                   # 349 M parameters, float32, CPU
    python -m benchmarks.importance --shape mistral-7b --device cuda --windows 128 --seq_len 2048   # one large GPU

``backward`` is ``loss.backward()`` of the same model on the same tokens, gradients kept as training would keep
them and set to None after each step. Memory is the peak resident size above the process after imports (on a GPU, the
peak allocation). Times are medians over steps after one warm-up; the ratios are what to compare, in one run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.large_shape import MISTRAL_7B

VARIANTS = ("backward", "fisher", "taylor")
LIMITS = {"fisher": (0.75, 0.65), "taylor": (1.15, 0.65)}  # of backward: time, memory
SHAPES: dict[str, dict[str, Any]] = {
    "llama-349m": {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "dtype": "float32",
    },
    "mistral-7b": MISTRAL_7B | {"dtype": "bfloat16"},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.importance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-349m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=5, help="measured steps, after one warm-up (default 5)")
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2, help="processes a variant, in turn (default 2)")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            runs[variant].append(in_own_process(variant))
    print(table(runs))
    return 0


def in_own_process(variant: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.importance", *sys.argv[1:], "--variant", variant]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{variant:>9}: {result['step_s']:.3f} s a step, {result['peak_bytes'] / 2**20:,.0f} MiB", file=sys.stderr)
    return result


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step and peak bytes of one variant, in this process."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.windows import TokenWindows
    from importance.measure import measure_importance
    from models.architecture import architecture_of
    from models.family_table import family_of

    device = torch.device(options.device)
    shape = dict(SHAPES[options.shape])
    dtype = getattr(torch, shape.pop("dtype"))
    warm_up(shape, device)
    memory = PeakMemory(device)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).eval()
    torch.set_default_dtype(torch.float32)
    family = family_of(shape["model_type"])
    ids = np.random.default_rng(0).integers(0, shape["vocab_size"], (options.windows + 1, options.seq_len))
    memory.watch()
    seconds = []
    if options.variant == "backward":
        for row in ids:
            start = time.perf_counter()
            batch = torch.from_numpy(row[None]).to(device)
            model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            model.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
    else:
        architecture = architecture_of(model, family)
        for start_row in range(len(ids)) if device.type == "cpu" else [0, 1]:
            rows = ids[start_row : start_row + 1] if device.type == "cpu" or start_row == 0 else ids[1:]
            windows = TokenWindows(rows, "random", "calibration", "random ids")
            start = time.perf_counter()
            measure_importance(model, family, architecture, windows, criterion=options.variant)
            seconds.append((time.perf_counter() - start) / len(rows))
    return {"step_s": statistics.median(seconds[1:]), "peak_bytes": memory.peak()}


def warm_up(shape: dict[str, Any], device: Any) -> None:
    """Import the family's modules and load the libraries' kernels on a model of the same kind, but tiny."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = shape | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    tiny |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny))
    ids = torch.zeros(1, 16, dtype=torch.int64, device=device)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


class PeakMemory:
    """Peak resident size above what the process had after imports, sampled every 2 ms; on a GPU, peak allocation."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.start = self.highest = resident_bytes()

    def watch(self) -> None:
        if self.device.type == "cpu":
            threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.highest = max(self.highest, resident_bytes())
            time.sleep(0.002)

    def peak(self) -> int:
        if self.device.type != "cpu":
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        return self.highest - self.start


def resident_bytes() -> int:
    """Resident size of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: medians over rounds, and each variant's ratio to backward."""
    middle = {
        variant: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for variant, found in runs.items()
    }
    base = middle["backward"]
    rows = [
        "| variant | s a step | × backward | wanted | peak MiB | × backward | wanted |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, found in middle.items():
        time_limit, memory_limit = (f"≤ {limit}" for limit in LIMITS[variant]) if variant in LIMITS else ("", "")
        seconds, mebibytes = found["step_s"], found["peak_bytes"] / 2**20
        memory_ratio = found["peak_bytes"] / base["peak_bytes"]
        rows.append(
            f"| {variant} | {seconds:.3f} | {seconds / base['step_s']:.2f} | {time_limit} "
            f"| {mebibytes:,.0f} | {memory_ratio:.2f} | {memory_limit} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
