"""A model is left as it was found: whoever measures on it does so inside one of these."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle


@contextmanager
def left_as_found(model: Any) -> Iterator[list[RemovableHandle]]:
    """Measure inside; hooks put into the yielded list, modes, requires_grad and gradients are restored on exit.

    Inside, the model is in eval mode, every parameter is frozen and has no gradient. Also after an exception.
    """
    training = {module: module.training for module in model.modules()}
    parameters = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    handles: list[RemovableHandle] = []
    try:
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
        for parameter, (requires_grad, gradient) in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
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
