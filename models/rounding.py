"""Weights rounded to what a checkpoint will hold, before anything is said of the model that it holds."""

from typing import Any

import torch

from core.errors import NumericalError


@torch.no_grad()
def round_parameters(model: Any, dtype: torch.dtype) -> None:
    """Round every parameter of ``model`` to ``dtype``, in place; each keeps the dtype it computes in.

    A checkpoint in bfloat16 of weights that are wider (a float32 norm or head among bfloat16 matrices, float32 tensors
    under a bfloat16 config.json) is a slightly different model. Rounded first, the model in memory is the one that is
    saved: they compare to within the order of summation, and what is measured is what is delivered.
    Raises NumericalError, before anything is changed, for a weight beyond the range of ``dtype``.
    """
    check_range(model, dtype)
    for parameter in model.parameters():
        if _is_wider(parameter, dtype):
            parameter.data.copy_(parameter.data.to(dtype))


@torch.no_grad()
def check_range(model: Any, dtype: torch.dtype) -> None:
    """Raise NumericalError (one line) for the first weight that is finite and would be Inf in ``dtype``.

    Only float16 has a range worth asking about: bfloat16 and float32 share theirs, but for the last rounding step.
    """
    if dtype != torch.float16:
        return
    for name, parameter in model.named_parameters():
        check_tensor_range(name, parameter.data, dtype)


@torch.no_grad()
def check_finite(model: Any) -> None:
    """Raise NumericalError (one line) for the first weight that is NaN or Inf: nothing can be measured with it."""
    for name, parameter in model.named_parameters():
        check_tensor_finite(name, parameter.data)


def check_tensor_finite(name: str, tensor: torch.Tensor) -> None:
    """The same of one tensor."""
    if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax()):
        kind = str(tensor.dtype).removeprefix("torch.")
        way_out = "; if only float16 is too narrow for them, add --dtype bfloat16" * (kind == "float16")
        raise NumericalError(f"{name} holds NaN or Inf as {kind}; give weights that are finite{way_out}")


def check_tensor_range(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """``check_range`` of one tensor."""
    if dtype != torch.float16 or not _is_wider(tensor, dtype):
        return
    overflown = tensor.to(dtype).isinf() & tensor.isfinite()
    if bool(overflown.any()):
        largest = float(tensor[overflown].abs().max())
        raise NumericalError(
            f"{name} holds {largest:.4g}, beyond float16's largest number {torch.finfo(dtype).max:.0f}, so the model "
            "cannot be saved in float16; add --dtype bfloat16 or --dtype float32"
        )


def _is_wider(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype != dtype and tensor.dtype.itemsize >= dtype.itemsize
