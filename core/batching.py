"""Run windows in batches that shrink when memory runs out. torch is imported where it is used."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from core import ranks
from core.errors import UsageError
from core.progress import tqdm

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
TOKENS_A_BATCH = 2048  # what "auto" starts from: all that caches of a CPU hold, and little enough for a 7B on one card
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    *(f"{library}_STATUS_ALLOC_FAILED" for library in ("CUBLAS", "CUSOLVER", "CUDNN")),
)
GPU_PIECE = 8  # times what a CPU works on at a time
BUSY_BYTES = 2**28  # on a GPU: float32 values of the widest module that a batch makes, at first


def busy_tokens(device: "torch.device", widest: int) -> int:
    """Tokens a batch that keep a device busy, where its widest module has so many inputs.

    More than TOKENS_A_BATCH on a GPU where modules are small, since each kernel takes some microseconds to launch. A
    fixed number for a model, so that rounding does not depend on what else runs there.
    """
    return TOKENS_A_BATCH if device.type == "cpu" else max(TOKENS_A_BATCH, BUSY_BYTES // (4 * widest))


def values_at_once(on_a_cpu: int, device: "torch.device") -> int:
    """Of rows that are worked on some at a time: on a CPU so many values as its caches hold, on a GPU more, since each
    piece is a dozen kernels to launch, and its memory is as fast as those caches."""
    return on_a_cpu if device.type == "cpu" else GPU_PIECE * on_a_cpu


def for_each_batch(
    ids: np.ndarray, step: Callable[[np.ndarray], None], batch_size: int | None, description: str, first: int = 1
) -> None:
    """Call ``step`` with consecutive rows of ``ids`` (N, T) until all have been seen.

    batch_size None starts with ``first`` rows and halves whenever a step runs out of memory, down to one window. A step
    must not keep anything of a batch that it did not finish, because its windows come again.
    Raises UsageError when memory does not suffice.
    """
    size = batch_size or first
    start = 0
    with tqdm(total=len(ids), desc=description, unit="window", leave=False) as progress:
        while start < len(ids):
            attempt = partial(_first_rows, step, ids[start:])
            _, size = with_batch_that_fits(attempt, size, fixed=batch_size is not None)
            done = min(size, len(ids) - start)
            start += done
            progress.update(done)


def _first_rows(step: Callable[[np.ndarray], None], rows: np.ndarray, count: int) -> None:
    step(rows[:count])


def with_batch_that_fits(attempt: Callable[[int], T], size: int, *, fixed: bool) -> tuple[T, int]:
    """``attempt(size)``, with ``size`` halved for as long as memory does not suffice; the value and the size used.

    fixed: the user asked for exactly this size, so it is not changed behind their back.
    Raises UsageError where a single sequence does not fit, or ``size`` is fixed.
    """
    import torch

    while True:
        try:
            return attempt(size), size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: there the traceback would still hold the tensors that filled the memory.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise UsageError("one window does not fit in memory: use a shorter --seq_len or --eval_seq_len")
        if fixed:
            raise UsageError(f"--batch_size {size} does not fit in memory: use a smaller one, or leave it out")
        size //= 2


def with_what_gives_way(attempt: Callable[[], T], give_way: Sequence[Callable[[], None]]) -> T:
    """``attempt()``, again after each of ``give_way`` in turn for as long as memory does not suffice. Where several
    processes work together none tries again, since the others would wait for what it has exchanged already."""
    import torch

    left = list(give_way) if ranks.count() == 1 else []
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not (left and is_out_of_memory(error)):
                raise
        left.pop(0)()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator or the CPU ran out of memory: torch's allocator for the former has an exception of its
    own, the others (of the CPU, of the driver, of libraries that keep some for themselves) have only words."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
