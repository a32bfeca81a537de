"""Memory that may still be taken, as measured where it is asked; what rests there leaves a margin to whoever computes.

torch is imported where it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RESTING_SHARE = 0.5  # of free memory, for what only rests in it; the other half is left to the batches that compute
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def has_room(needed_bytes: int, device: "torch.device") -> bool:
    """Whether this much may rest on ``device``; no where its free memory cannot be told."""
    free = free_bytes(device)
    return free is not None and needed_bytes <= RESTING_SHARE * free


def free_bytes(device: "torch.device") -> int | None:
    """Bytes that this process may still take on ``device``, torch's own reserve included; None where none can tell."""
    if device.type == "cuda":
        import torch

        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return _free_ram_bytes() if device.type == "cpu" else None


def _free_ram_bytes() -> int | None:
    """Linux, the limit of a container included."""
    try:
        free = _fields(MEMINFO)["MemAvailable:"] * 1024
    except (OSError, LookupError, ValueError):
        return None
    try:
        limit = int((CGROUP / "memory.max").read_text())
        return min(free, limit - _fields(CGROUP / "memory.stat")["anon"])  # the page cache makes room when asked
    except (OSError, LookupError, ValueError):  # no container, or one without a limit ("max")
        return free


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}
