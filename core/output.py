"""Names of an output folder, and whether it can be written to, asked before anything is measured."""

import tempfile
from pathlib import Path

from core.errors import OutputError

RECORD = "run.json"  # marks a finished run
UNFINISHED = "unfinished.json"  # marks what a failed run left


def readable(path: Path | str) -> str:
    """``path`` for a message of one line: as it is, or quoted with escapes where it holds what cannot be printed."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def reason(error: OSError) -> str:
    """What the system says, without number and path."""
    return error.strerror or type(error).__name__


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise OutputError (one line) when the folder cannot be used; leaves no trace of the attempt."""
    missing: list[Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"--output {readable(folder)} is a file; give a folder")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise OutputError(not_empty(folder))
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        for path in missing:
            if path.is_dir():
                path.rmdir()


def not_empty(folder: Path) -> str:
    return f"--output {readable(folder)} exists and is not empty; give another folder, or add --overwrite"


def cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"--output {readable(folder)} cannot be written ({reason(error)}); give another folder")
