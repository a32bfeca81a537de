"""Whose fault it is when a saved folder cannot be loaded or run: the model's, or that of the machine it is tried on."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from core.errors import reason_of
from core.families import Family
from models.shipped import render

# What torch, safetensors and CUDA say in exceptions of no type of their own.
_WORDS = re.compile(
    r"out of memory|not enough memory|cannot allocate memory|can't allocate memory|no space left|read-only file system"
    r"|disk quota|permission denied|too many open files|os error \d+|cuda error|cudnn|cublas|nccl|driver",
    re.IGNORECASE,
)
_NETWORK = ("httpx", "requests", "urllib3", "huggingface_hub")  # by release of the hub's client
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def fault_of_the_machine(error: BaseException, folder: Path, family: Family) -> str | None:
    """One line on why ``folder`` could not be tried here, or None where the error speaks against the model.

    Of the machine: no memory, no disk, no permission, no network, a broken device, and a package that cannot be
    imported while the folder's own Python is what this program writes (it runs in this very process). Anything else,
    first of all a file of the folder that is missing or says something wrong, is of the model.
    """
    for link in _chain(error):
        if _is_of_the_machine(link, folder, family):
            return first_line(link)
    return None


def first_line(error: BaseException) -> str:
    """Type and words of an error, at most 200 characters of them."""
    words, kind = reason_of(error, 200), type(error).__name__
    return words if words.startswith(kind) else f"{kind}: {words}"


def _is_of_the_machine(error: BaseException, folder: Path, family: Family) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, ConnectionError, TimeoutError)):
        return True
    if type(error).__module__.split(".")[0] in _NETWORK:
        return True
    if isinstance(error, ImportError):
        return _has_the_code_we_write(folder, family)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _ABSENT or not _is_in(error.filename, folder)
    return isinstance(error, (OSError, RuntimeError)) and bool(_WORDS.search(first_line(error)))


def _has_the_code_we_write(folder: Path, family: Family) -> bool:
    """Whether the folder's Python files are ours, unchanged, or there are none and none are needed."""
    found = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.py")}
    return found in ({}, render(family))


def _is_in(name: object, folder: Path) -> bool:
    return isinstance(name, (str, bytes)) and Path(str(name)).absolute().is_relative_to(folder.absolute())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
