"""Failures that are nobody's bug: of the machine, which end a run in one line, and of conveniences, which do not."""

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core import ranks
from core.errors import PruningError, reason_of
from core.say import say

NO_SPACE = "free some space there, or give another folder"
NOT_ALLOWED = "give a folder that can be written, or change its permissions"
NEXT_STEP = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: "write to a file system that takes files of this size, or give a smaller --max_shard_size",
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EROFS: NOT_ALLOWED,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "use a shorter path, e.g. with --output",
    errno.ENOENT: "was it moved or removed while the program ran?",
}
ELSEWHERE = "check that disk or connection, then run again"
OUT_OF_MEMORY = (
    "give a smaller --batch_size, --num_samples or --seq_len, use --engine streamed with --scratch, or "
    "a machine with more memory"
)
# How libraries say in plain text what has no exception type of its own.
WRAPPED = re.compile(r"\(os error (\d+)\)")  # Rust: safetensors, tokenizers
MEMORY_SIGNS = ("DefaultCPUAllocator", "out of memory", "can't allocate memory", "Cannot allocate memory")


def in_one_line(error: BaseException) -> str:
    """What an exception says, on one line: all its lines, a path where the system names one, never nothing."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name} is not installed"
    return reason_of(error)


def of_the_machine(error: BaseException) -> str | None:
    """The one line for a disk, a permission, a connection or a memory that gave out; None for any other failure."""
    if _is_memory(error):
        return f"out of memory ({in_one_line(error)[:120]}): {OUT_OF_MEMORY}"
    number = _errno(error)
    if number is None and not isinstance(error, OSError):
        return None
    return f"{in_one_line(error)}; {NEXT_STEP.get(number or 0, ELSEWHERE)}"


def _errno(error: BaseException) -> int | None:
    """The system's number of a failure, also where a Rust library wrapped it into text."""
    if isinstance(error, OSError):
        return error.errno
    found = WRAPPED.search(str(error))
    return int(found.group(1)) if found else None


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY_SIGNS)


def exit_code(run: Callable[[], object]) -> int:
    """Call ``run``: 0, or one line on stderr and the code of an expected failure. Bugs and Ctrl-C pass through."""
    try:
        with in_the_programs_words():
            run()
    except PruningError as error:
        if ranks.speaks():
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


@contextmanager
def in_the_programs_words() -> Iterator[None]:
    """Inside, a disk, a connection or a memory that gives out raises a PruningError in one line. Bugs pass through."""
    try:
        yield
    except PruningError:
        raise
    except Exception as error:
        said = of_the_machine(error)
        if said is None:
            raise
        raise PruningError(said) from error


@contextmanager
def convenience(what: str, warnings: list[str]) -> Iterator[None]:
    """Inside, whatever fails is a warning and not the end of the run: said on stderr, kept in ``warnings`` once.

    what: what the user goes without (``the pictures``).
    """
    try:
        yield
    except Exception as error:  # a model is worth more than any of this, whatever the reason
        warn(f"{what}: {in_one_line(error)}", warnings)


def warn(sentence: str, warnings: list[str]) -> None:
    if sentence not in warnings:
        warnings.append(sentence)
        say(f"warning: {sentence}")
