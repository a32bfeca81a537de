"""What a run costs on one GPU, stage by stage and whole: a table on stdout, and the same as JSON.

    python -m benchmarks.gpu                                # Mistral-7B's and SmolLM2-135M's shapes, the embedded model
    python -m benchmarks.gpu --layers 8 --json gpu.json     # fewer layers of the large shape
    python -m benchmarks.gpu --only gradients run-large     # some of the rows

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
    distil_row,
    elimination_row,
    gradient_row,
    obs_row,
    repair_row,
    writing_row,
)
from benchmarks.gpu.whole import whole_run_row
from core.errors import PruningError
from models.loading import choose_device
from run.record import environment
from run.surroundings import surroundings


@dataclass(frozen=True)
class Sizes:
    """How much is measured. windows, seq_len: of gradients. short: windows of the repair and of the small shape.
    distil: steps, and windows of each. text: of runs."""

    large: str
    small: str
    windows: int
    seq_len: int
    obs_windows: int
    channels: int
    short: tuple[int, int]
    distil: tuple[int, int]
    text: tuple[str, ...]
    small_text: tuple[str, ...]
    runs: tuple[float | None, float | None, float | None]


ON_A_GPU = Sizes(
    *("mistral-7b", "smollm2-135m", 8, 2048, 128, 14336, (128, 256), (50, 16)),
    text=("--eval_seq_len", "2048", "--eval_samples", "40"),
    small_text=("--eval_seq_len", "2048", "--eval_samples", "40"),
    runs=(180.0, 40.0, 20.0),
)
TINY = Sizes(
    *("tiny", "tiny", 2, 64, 4, 192, (4, 32), (2, 2)),
    text=("--num_samples", "4", "--seq_len", "32", "--eval_seq_len", "64", "--eval_samples", "2"),
    small_text=("--num_samples", "4", "--seq_len", "32", "--eval_seq_len", "64", "--eval_samples", "2"),
    runs=(None, None, None),
)


STAGES = ("elimination", "gradients", "obs", "writing", "repair", "small")
RUNS = ("run-large", "run-small", "run-embedded")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--layers", type=int, help="of the large shape (default all)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*STAGES, *RUNS),
        default=(*STAGES, *RUNS),
        metavar="ROWS",
        help=f"of {', '.join((*STAGES, *RUNS))} (all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("gpu-benchmark.json"), help="(%(default)s)")
    options = parser.parse_args()
    try:
        device = choose_device(options.device)
    except PruningError as error:
        sys.exit(f"error: {error}")
    sizes, dtype = (ON_A_GPU, torch.bfloat16) if device.type == "cuda" else (TINY, torch.float32)
    rows: list[Row] = []
    with surroundings(0), tempfile.TemporaryDirectory() as folder:
        rate, about = matmul_rate(device, dtype), environment(device)
        record: dict[str, Any] = {"environment": about, "matmul_flop_per_s": rate, "dtype": str(dtype)}
        for row in measured(sizes, options, device, dtype, Path(folder)):
            print(f"{row.what}: {row.seconds:.3g} s", file=sys.stderr, flush=True)
            rows.append(row)
            record["rows"] = [row.record(rate) for row in rows]
            options.json.write_text(
                json.dumps(record, indent=1) + "\n", encoding="utf-8"
            )  # now, in case the next fails
    print(f"{about['device_name']}, torch {about['packages']['torch']}, {rate / 1e12:.3g} TFLOP/s measured\n")
    print(table(rows, rate))
    return 0


def measured(
    sizes: Sizes, options: argparse.Namespace, device: torch.device, dtype: torch.dtype, folder: Path
) -> Iterator[Row]:
    asked = set(options.only)
    if "elimination" in asked:
        yield elimination_row(sizes.channels, device, aim=1.5)
    if asked & {"gradients", "obs", "writing", "repair", "run-large"}:
        yield from of_large(sizes, asked, options.layers, device, dtype, folder)
    if asked & {"small", "run-small"}:
        yield from of_small(sizes, asked, device, dtype, folder)
    if "run-embedded" in asked:
        text = [] if device.type == "cuda" else list(TINY.text)
        yield whole_run_row("the embedded model", "demo", text, str(device), aim=sizes.runs[2])


def of_large(
    sizes: Sizes, asked: set[str], layers: int | None, device: torch.device, dtype: torch.dtype, folder: Path
) -> Iterator[Row]:
    subject = Subject.of(sizes.large, build(sizes.large, layers, device, dtype), device)
    checkpoint = save(subject.model, folder / "large") if "run-large" in asked else None
    if "gradients" in asked:
        plain = backward_row(subject, sizes.windows, sizes.seq_len)
        yield plain
        yield gradient_row(subject, "fisher", sizes.windows, sizes.seq_len, plain, aim=0.75)
        yield gradient_row(subject, "taylor", sizes.windows, sizes.seq_len, plain, aim=1.15)
    if "obs" in asked:
        yield obs_row(subject, sizes.obs_windows, sizes.seq_len, aim=90.0)
    if "writing" in asked:
        yield writing_row(subject, *sizes.short)
    if "repair" in asked:
        yield repair_row(subject, *sizes.short)
    weights = subject.weight_bytes
    del subject
    free(device)
    if checkpoint is not None:
        run = whole_run_row(
            sizes.large, str(checkpoint), list(sizes.text), str(device), aim=sizes.runs[0], weight_bytes=weights
        )
        yield run


def of_small(sizes: Sizes, asked: set[str], device: torch.device, dtype: torch.dtype, folder: Path) -> Iterator[Row]:
    subject = Subject.of(sizes.small, build(sizes.small, None, device, dtype), device)
    checkpoint = save(subject.model, folder / "small") if "run-small" in asked else None
    if "small" in asked:
        yield backward_row(subject, min(8, sizes.short[0]), sizes.short[1])
        yield criterion_row(subject, "taylor", *sizes.short, aim=None)
        yield obs_row(subject, *sizes.short, aim=None)
        yield writing_row(subject, *sizes.short)
        yield distil_row(subject, *sizes.distil, sizes.short[1])
    del subject
    free(device)
    if checkpoint is not None:
        yield whole_run_row(sizes.small, str(checkpoint), list(sizes.small_text), str(device), aim=sizes.runs[1])


def free(device: torch.device) -> None:
    """Give back what a deleted model held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
