"""Folders that libraries write to beside the run's own; where one cannot be written, another for this process.

Containers run as a user without a home, homes are read-only or full. transformers copies the code of a checkpoint to
its modules cache before it runs it, datasets keeps what it has read; neither needs to outlive the run.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.errors import OutputError

TRIAL_BYTES = 65536  # more than the files that a checkpoint brings along
# Environment variable -> folder below HF_HOME that it stands for.
FOLDERS = {"HF_MODULES_CACHE": "modules", "HF_DATASETS_CACHE": "datasets"}


@contextmanager
def writable_folders() -> Iterator[list[str]]:
    """Inside, every folder of FOLDERS can be written; gives a sentence for each that was replaced.

    To be entered before transformers or datasets are imported, which read the variables once. OutputError where no
    temporary folder can be written either. Variables and temporary folders are gone afterwards.
    """
    with ExitStack() as stack:
        notes = []
        for variable, name in FOLDERS.items():
            folder = Path(os.environ.get(variable) or hf_home() / name)
            reason = why_not_writable(folder)
            if reason is not None:
                stack.enter_context(_replaced(variable, stack.enter_context(_temporary_folder())))
                notes.append(f"{folder} cannot be written ({reason}); a temporary folder is used instead ({variable})")
        yield notes


def hf_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.path.expandvars(os.environ.get("HF_HOME") or cache / "huggingface")).expanduser()


def why_not_writable(folder: Path) -> str | None:
    """Why no file of TRIAL_BYTES can be made in ``folder``, which need not exist; None where it can. No trace stays."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            return f"{there} is a file"
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(TRIAL_BYTES))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="global-pruning-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be written ({error.strerror}): set TMPDIR to a folder that can be written"
        ) from error


@contextmanager
def _replaced(variable: str, folder: str) -> Iterator[None]:
    """The variable names ``folder``, and so does what transformers has read of it, where it is imported already."""
    before = os.environ.get(variable)
    os.environ[variable] = folder
    readers = [sys.modules.get(name) for name in ("transformers.dynamic_module_utils", "transformers.utils.hub")]
    held = {reader: vars(reader)[variable] for reader in readers if reader is not None and variable in vars(reader)}
    for reader in held:
        setattr(reader, variable, folder)
    try:
        yield
    finally:
        for reader, value in held.items():
            setattr(reader, variable, value)
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
