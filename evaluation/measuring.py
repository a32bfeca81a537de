"""What every measurement shares: things are left as found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def as_found(model: "PreTrainedModel") -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards every module has its training flag back.

    Holds after an exception too. ``no_grad`` rather than ``inference_mode``: buffers that a model updates while it
    runs must stay usable by a later backward pass.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random generators start at ``seed`` inside and are put back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (what other code uses)
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
