"""Kernels that Triton compiles for a GPU, for as long as they work; whoever asks for one knows how to do without.

torch brings Triton along where there is a GPU. It needs a C compiler, which some machines lack.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from core.batching import is_out_of_memory
from core.errors import reason_of
from core.say import note

if TYPE_CHECKING:
    import torch


def have(device: "torch.device") -> bool:
    """Whether kernels are worth a try there."""
    return device.type == "cuda" and not _FAILED and _triton_is_there()


def attempt(module: str, function: str, *arguments: Any) -> Any:
    """What the function of a module of kernels gives; None where it fails, which is said once, and ends all of them.

    The first argument is a tensor, whose device is the current one meanwhile: Triton launches there, wherever tensors
    are.
    """
    if _FAILED:
        return None
    try:
        run: Callable[..., Any] = getattr(import_module(module), function)
        with _current(arguments[0].device):
            return run(*arguments)
    except Exception as error:  # of a compiler, of whatever kind
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        give_up(reason_of(error, 160))
        return None


def give_up(reason: str) -> None:
    """Use no kernel any more in this process, and say why."""
    _FAILED.append(reason)
    remind()


def remind(device: "torch.device | None" = None) -> None:
    """Say why no kernel is used on a GPU, where one has failed: who listens now may not have heard it then."""
    for reason in _FAILED[:1] if device is None or device.type == "cuda" else []:
        note(f"measuring takes several times as long as with Triton's kernels, which fail here: {reason}")


def _current(device: "torch.device") -> AbstractContextManager[None]:
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


_FAILED: list[str] = []


@cache
def _triton_is_there() -> bool:
    try:
        import_module("triton")
    except ImportError:
        return False
    return True
