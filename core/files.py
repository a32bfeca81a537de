"""Writing files so that a killed run leaves nothing that looks finished."""

import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Call ``write(temporary)`` beside ``path``, then rename it into place; on failure nothing remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600; a result is meant to be read by others
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def is_temporary(path: Path, stem: str, suffix: str) -> bool:
    """Whether ``path`` was made by ``tempfile`` for ``<stem><suffix>`` and never finished.

    By its name, and by its mode: nobody but the owner is let in, as is rarely so where somebody typed the name.
    """
    if not re.fullmatch(rf"\.{re.escape(stem)}\.[a-z0-9_]{{8}}{re.escape(suffix)}", path.name):
        return False
    mode = path.lstat().st_mode
    return stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600) and not stat.S_ISLNK(mode)


def write_text(path: Path, text: str) -> Path:
    return write_atomically(path, lambda temporary: _write_utf8(temporary, text))


def write_json(path: Path, value: Any) -> Path:
    """Standard JSON, indented, one value a line; NaN and Inf become null."""
    return write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Python numbers, lists and dicts only: numpy values are converted, non-finite floats become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalar or array
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _write_utf8(path: Path, text: str) -> None:
    # A path that is not UTF-8 comes as lone surrogates: ``\udcff`` in the file, which JSON reads back as it was.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
