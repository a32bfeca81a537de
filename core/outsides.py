"""What tells that a file changed without reading it: name, size, time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def outsides(paths: Iterable[Path], below: Path | None = None) -> list[list[Any]]:
    """[name, bytes, time of the last change in ns] of each file, in the order given; OSError where one is gone.

    below: names are relative to this folder, else they are whole paths.
    """
    found = []
    for path in paths:
        seen = path.stat()
        name = path.resolve() if below is None else path.relative_to(below)
        found.append([name.as_posix(), seen.st_size, seen.st_mtime_ns])
    return found


def outsides_below(folder: Path) -> list[list[Any]]:
    """The same of every file in a folder and its folders, sorted by name. OSError."""
    return outsides(sorted(path for path in folder.rglob("*") if path.is_file()), folder)
