"""Memory of a device that this process may still take. torch is imported where it is used."""

from typing import Any


def free_bytes(device: Any) -> int | None:
    """Bytes that tensors on ``device`` (a torch.device) may still take; None where the device does not say (a CPU).

    What the allocator holds without using it counts as free, and a share of the card set by
    ``torch.cuda.set_per_process_memory_fraction`` is a cap.
    """
    if device.type != "cuda":
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    used, held = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    capped = total * torch.cuda.get_per_process_memory_fraction(device) - used
    return max(0, int(min(free + held - used, capped)))
