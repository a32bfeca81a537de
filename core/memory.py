"""How much memory this process may still take."""

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Memory this process may still take (Linux, a container's limit included); None where it cannot be told."""
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
