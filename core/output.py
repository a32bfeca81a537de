"""Whether a folder can be written to, asked before anything is measured."""

import tempfile
from pathlib import Path

from core.errors import OutputError


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise OutputError (one line) when the folder cannot be used; leaves no trace of the attempt."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--output {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"--output {folder} exists and is not empty; give another folder, or add --overwrite")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"--output {folder} cannot be written ({error.strerror}); give another folder") from error
    finally:
        for path in missing:
            if path.is_dir():
                path.rmdir()
