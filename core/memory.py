"""Memory that may still be taken, as measured where it is asked; what rests there leaves a margin to whoever computes.

torch is imported where it is used.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UsageError

if TYPE_CHECKING:
    import torch

RESTING_SHARE = 0.5  # of free memory, for what only rests in it; the other half is left to the batches that compute
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def has_room(needed_bytes: int, device: "torch.device", beside: int = 0) -> bool:
    """Whether this much may rest on ``device``; no where its free memory cannot be told. beside: bytes of it that are
    spoken for."""
    free = free_bytes(device)
    return free is not None and needed_bytes <= RESTING_SHARE * (free - beside)


def free_bytes(device: "torch.device | None" = None) -> int | None:
    """Bytes that this process may still take on ``device`` (None: in main memory); None where nothing can tell."""
    if device is None or device.type == "cpu":
        return _free_ram_bytes()
    return free_gpu_bytes(device)


def free_gpu_bytes(device: "torch.device") -> int | None:
    """Bytes that tensors on a GPU may still take; None for any other device.

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


def gpu_capacity(device: "torch.device") -> int | None:
    """Bytes of a GPU that tensors of this process may take in all; None for any other device.

    Unlike what is free this is the same at any moment, for what must not change a result.
    """
    if device.type != "cuda":
        return None
    import torch

    total = torch.cuda.mem_get_info(device)[1]
    return int(total * torch.cuda.get_per_process_memory_fraction(device))


def bytes_of(size: str) -> int:
    """A size such as ``17GB`` in bytes, 1 KB being 1,000. UsageError for what is none, or is less than a byte."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]B)", size.upper())
    count = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if count < 1:
        raise UsageError(f"{size!r} is not a size above 0 in KB, MB, GB or TB, e.g. 17GB")
    return count


def bytes_text(count: float) -> str:
    """Decimal units, as disks and model hubs count: ``11.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


@contextmanager
def capped(device: "torch.device", most_bytes: int | None) -> Iterator[None]:
    """Inside, tensors of this process take no more than so many bytes of a GPU; what asks for more is out of memory.

    A cap that there was already holds as well and is back afterwards. None, and any other device: nothing changes.
    """
    if most_bytes is None or device.type != "cuda":
        yield
        return
    import torch

    before = torch.cuda.get_per_process_memory_fraction(device)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(before, most_bytes / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


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
