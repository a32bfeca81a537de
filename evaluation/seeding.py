"""Random generators that start anew for a measurement and are put back after it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random generators start at ``seed`` inside and are put back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (what other code uses)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []  # unnamed, torch warns of several
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
