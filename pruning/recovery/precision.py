"""In which precision training multiplies. Weights that move are float32 whatever it is, and so is what decides."""

from typing import Any

import torch

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
WIDE = 512  # hidden size from which such products gain more than it takes to round what is multiplied


def halves_pay(model: Any, stored: torch.dtype | None) -> bool:
    """Whether products in half precision cost ``model`` nothing that it keeps: it has half precision itself, or they
    pay on this CPU."""
    return model.dtype != torch.float32 or pay_on_this_cpu(model, stored)


def pay_on_this_cpu(model: Any, stored: torch.dtype | None) -> bool:
    """Whether ``model`` is computed in float32 only because it is on a CPU, being saved in half precision, and this CPU
    multiplies bfloat16 faster at the model's width."""
    if model.dtype != torch.float32 or model.device.type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return False
    return model.config.get_text_config().hidden_size >= WIDE and _cpu_multiplies_bfloat16()


def products_of(device: torch.device, half: bool) -> torch.autocast:
    """Inside, products are computed as ``arguments`` has Trainer compute them."""
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float16
    return torch.autocast(device.type, dtype, enabled=half)


def has_bfloat16(device: torch.device) -> bool:
    """Whether half precision is bfloat16 there, not float16."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


def _cpu_multiplies_bfloat16() -> bool:
    """By instructions of its own. torch 2.11 does not tell."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
