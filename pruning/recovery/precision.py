"""In which precision training multiplies. The weights that move are float32 in any case."""

from typing import Any

import torch

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
WIDE = 512  # hidden size from which such products gain more than it takes to round what is multiplied


def halves_pay(model: Any, device: torch.device, stored: torch.dtype | None) -> bool:
    """Whether products in half precision cost ``model``, computed on ``device``, nothing that it keeps: it has half
    precision itself, or they pay on this CPU."""
    return model.dtype != torch.float32 or pay_on_this_cpu(model, device, stored)


def pay_on_this_cpu(model: Any, device: torch.device, stored: torch.dtype | None) -> bool:
    """Whether ``model`` is computed in float32 only because it is on a CPU, being saved in half precision, and this CPU
    multiplies bfloat16 faster at the model's width. device: where it is computed, wherever its weights are."""
    if model.dtype != torch.float32 or device.type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return False
    return model.config.get_text_config().hidden_size >= WIDE and _cpu_multiplies_bfloat16()


def products_of(device: torch.device, half: bool) -> torch.autocast:
    """Inside, products are computed as ``arguments`` has Trainer compute them."""
    return torch.autocast(device.type, half_of(device), enabled=half)


def half_of(device: torch.device) -> torch.dtype:
    """What half precision is there."""
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpu_multiplies_bfloat16() -> bool:
    """By instructions of its own; no where torch is too old to tell."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
