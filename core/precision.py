"""In which precision training multiplies, and a model that writes. Weights that move are float32 in any case."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
WIDE = 512  # hidden size from which such products gain more than it takes to round what is multiplied


def halves_pay(model: Any, device: torch.device, stored: torch.dtype | None) -> bool:
    """Whether products in half precision cost ``model``, computed on ``device``, nothing that it keeps: it has half
    precision itself, or they pay on this CPU."""
    return model.dtype != torch.float32 or pay_on_this_cpu(model, device, stored)


def pay_on_this_cpu(model: Any, device: torch.device, stored: torch.dtype | None) -> bool:
    """``bfloat16_pays`` for this model. device: where it is computed, wherever its weights are."""
    return bfloat16_pays(model.dtype, model.config.get_text_config().hidden_size, device, stored)


def bfloat16_pays(dtype: torch.dtype, width: int, device: torch.device, stored: torch.dtype | None) -> bool:
    """Whether a model is computed in float32 only because it is on a CPU, being saved in half precision, and this CPU
    multiplies bfloat16 faster at the model's width."""
    if dtype != torch.float32 or device.type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return False
    return width >= WIDE and _cpu_multiplies_bfloat16()


def products_of(device: torch.device, half: bool) -> torch.autocast:
    """Inside, products are computed as ``arguments`` has Trainer compute them."""
    return torch.autocast(device.type, half_of(device), enabled=half)


@contextmanager
def in_bfloat16(model: Any, wanted: bool) -> Iterator[None]:
    """Inside, where wanted, the float32 weights of ``model`` are bfloat16; afterwards they are the same as before.

    Weights that would lose a digit stay float32, all of them.
    """
    parameters = list(model.parameters())
    halved = wanted and all(_is_bfloat16(parameter) for parameter in parameters)
    if not halved:
        yield
        return
    try:
        for parameter in parameters:
            parameter.data = parameter.data.bfloat16()
        yield
    finally:
        for parameter in parameters:
            parameter.data = parameter.data.float()


def half_of(device: torch.device) -> torch.dtype:
    """What half precision is there."""
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_bfloat16(values: torch.Tensor) -> bool:
    """Whether float32 values are bfloat16's as they are."""
    return values.dtype == torch.float32 and torch.equal(values, values.bfloat16().float())


def _cpu_multiplies_bfloat16() -> bool:
    """By instructions of its own; no where torch is too old to tell."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
