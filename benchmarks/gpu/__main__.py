"""What a run costs on one GPU, stage by stage and whole: a table on stdout, and the same as JSON.

    python -m benchmarks.gpu                                # Mistral-7B's and SmolLM2-135M's shapes, the embedded model
    python -m benchmarks.gpu --layers 8 --json gpu.json     # fewer layers of the large shape

Random weights, built on the device; nothing is downloaded. Without a GPU the same stages run on a tiny shape: those
figures say only that the command works.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import matmul_rate
from benchmarks.gpu.rows import Row, table
from benchmarks.gpu.shapes import build, save
from benchmarks.gpu.stages import (
    Subject,
    backward_row,
    criterion_row,
    elimination_row,
    gradient_row,
    obs_row,
    repair_row,
)
from benchmarks.gpu.whole import whole_run_row
from models.loading import choose_device
from run.record import environment
from run.surroundings import surroundings


@dataclass(frozen=True)
class Sizes:
    """How much is measured. windows, seq_len: of gradients; text of the repair and of runs."""

    large: str
    small: str
    windows: int
    seq_len: int
    obs_windows: int
    channels: int
    short: tuple[int, int]
    text: tuple[str, ...]
    small_text: tuple[str, ...]
    runs: tuple[float | None, float | None, float | None]


ON_A_GPU = Sizes(
    *("mistral-7b", "smollm2-135m", 8, 2048, 128, 14336, (128, 256)),
    text=("--eval_seq_len", "2048", "--eval_samples", "40"),
    small_text=("--eval_seq_len", "2048", "--eval_samples", "40"),
    runs=(180.0, 40.0, 20.0),
)
TINY = Sizes(
    *("tiny", "tiny", 2, 64, 4, 192, (4, 32)),
    text=("--num_samples", "4", "--seq_len", "32", "--eval_seq_len", "64", "--eval_samples", "2"),
    small_text=("--num_samples", "4", "--seq_len", "32", "--eval_seq_len", "64", "--eval_samples", "2"),
    runs=(None, None, None),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--layers", type=int, help="of the large shape (default all)")
    parser.add_argument("--stages_only", action="store_true", help="leave the whole runs out")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("gpu-benchmark.json"))
    options = parser.parse_args()
    device = choose_device(options.device)
    sizes, dtype = (ON_A_GPU, torch.bfloat16) if device.type == "cuda" else (TINY, torch.float32)
    rows: list[Row] = []
    with surroundings(0), tempfile.TemporaryDirectory() as folder:
        rate = matmul_rate(device, dtype)
        for row in measured(sizes, options, device, dtype, Path(folder)):
            print(f"{row.what}: {row.seconds:.3g} s", file=sys.stderr)
            rows.append(row)
    about = environment(device)
    print(f"{about['device_name']}, torch {about['packages']['torch']}, {rate / 1e12:.3g} TFLOP/s measured\n")
    print(table(rows, rate))
    record: dict[str, Any] = {"environment": about, "matmul_flop_per_s": rate, "dtype": str(dtype)}
    record["rows"] = [row.record(rate) for row in rows]
    options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(
    sizes: Sizes, options: argparse.Namespace, device: torch.device, dtype: torch.dtype, folder: Path
) -> Iterator[Row]:
    yield elimination_row(sizes.channels, device, aim=1.5)
    large = Subject.of(sizes.large, build(sizes.large, options.layers, device, dtype), device)
    checkpoints = [] if options.stages_only else [save(large.model, folder / "large")]
    plain = backward_row(large, sizes.windows, sizes.seq_len)
    yield plain
    yield gradient_row(large, "fisher", sizes.windows, sizes.seq_len, plain, aim=0.75)
    yield gradient_row(large, "taylor", sizes.windows, sizes.seq_len, plain, aim=1.15)
    yield obs_row(large, sizes.obs_windows, sizes.seq_len, aim=90.0)
    yield repair_row(large, *sizes.short)
    weights = large.weight_bytes
    del large
    free(device)
    small = Subject.of(sizes.small, build(sizes.small, None, device, dtype), device)
    if not options.stages_only:
        checkpoints.append(save(small.model, folder / "small"))
    yield backward_row(small, min(8, sizes.short[0]), sizes.short[1])
    yield criterion_row(small, "taylor", *sizes.short, aim=None)
    yield obs_row(small, *sizes.short, aim=None)
    del small
    free(device)
    if options.stages_only:
        return
    texts = (sizes.text, sizes.small_text)
    for name, path, text, aim, most in zip(
        (sizes.large, sizes.small), checkpoints, texts, sizes.runs[:2], (weights, None), strict=True
    ):
        yield whole_run_row(name, str(path), list(text), str(device), aim=aim, weight_bytes=most)
    embedded = [] if device.type == "cuda" else list(TINY.text)
    yield whole_run_row("the embedded model", "demo", embedded, str(device), aim=sizes.runs[2])


def free(device: torch.device) -> None:
    """Give back what a deleted model held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
