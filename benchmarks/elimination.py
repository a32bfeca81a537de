"""How long the removal of all inputs of one block takes: ``python -m benchmarks.elimination --inputs 1536``.

Prints the median CPU time of ``importance.elimination.eliminate`` over a few runs, and what the same operations would
take at the rate of one large float64 product. OMP_NUM_THREADS says on how many threads.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from importance.elimination import eliminate

RUNS, SIDE = 5, 2048


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.elimination", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--inputs", type=int, default=1536, help="n of the block (default 1536)")
    parser.add_argument("--outputs", type=int, default=576, help="C of the block (default 576)")
    asked = parser.parse_args(argv)
    moment, weight = problem(asked.inputs, asked.outputs)
    found = cpu_seconds(lambda: eliminate(moment, weight, 1))
    square = torch.ones(SIDE, SIDE, dtype=torch.float64)
    rate = 2 * SIDE**3 / cpu_seconds(lambda: square @ square)
    # n^3 each for the inverse and the updates of both matrices, C n^2 for V^T V: symmetric products by halves.
    needed = 2 * asked.inputs**3 + asked.outputs * asked.inputs**2
    print(
        f"{asked.inputs} inputs, {asked.outputs} outputs: {found:.3f} s of CPU time on {torch.get_num_threads()} "
        f"thread(s); {needed / rate:.3f} s at the {rate / 1e9:.0f} GFLOP/s of a large product"
    )
    return 0


def problem(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(moment float32 (n, n) of correlated inputs, weight float64 (C, n)), from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(2 * inputs, inputs, generator=generator) @ mixed
    return x.T @ x / len(x), torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def cpu_seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    raise SystemExit(main())
