"""Run a step over windows in batches that shrink when memory runs out. Imports torch where it is used."""

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

TOKENS_A_BATCH = 2048  # what "auto" starts from: enough to keep a GPU busy, little enough for a 7B on one card


def for_each_batch(
    ids: np.ndarray, step: Callable[[np.ndarray], None], batch_size: int | None, description: str
) -> int:
    """Call ``step`` with consecutive rows of ``ids`` (N, T) until all have been seen; returns the last batch size.

    batch_size None starts at TOKENS_A_BATCH tokens and halves whenever a step runs out of memory, down to one
    window. A step must not keep anything of a batch that it did not finish, because the batch comes again.
    """
    import torch

    size = batch_size or max(1, TOKENS_A_BATCH // ids.shape[1])
    start = 0
    with tqdm(total=len(ids), desc=description, unit="window", leave=False) as progress:
        while start < len(ids):
            batch = ids[start : start + size]
            try:
                step(batch)
            except torch.OutOfMemoryError:
                if batch_size is not None or size == 1:
                    raise
                size = max(1, size // 2)
                torch.cuda.empty_cache()
                continue
            start += len(batch)
            progress.update(len(batch))
    return size
