"""One run at a time in a folder: a lock that the system lets go of when the process ends, however it ends.

The lock lies on a file of its own name, which is removed with it. A killed process leaves the file and not the lock,
so the file says nothing; who holds the lock is written into it for the message of a second run.
"""

import contextlib
import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from core.errors import OutputError
from core.output import readable

LOCK = ".global-pruning.lock"
NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


@dataclass(frozen=True)
class Lock:
    """holds: False where files cannot be locked (Windows, some network mounts); then nothing keeps others out."""

    path: Path
    handle: int
    holds: bool

    def release(self) -> None:
        """The file goes first: whoever opened it meanwhile sees that it is no longer the one of that name."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


def lock(folder: Path, shown: Path) -> Lock:
    """Lock ``folder`` for this process. OutputError at once where another run holds it. shown: its name in messages."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            holds = _take(handle)
            if not _is_at(handle, path):  # removed by a run that ended between the two lines above
                os.close(handle)
                continue
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
            return Lock(path, handle, holds)
        except BlockingIOError:
            holder = os.pread(handle, 60, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise OutputError(
                f"--output {readable(shown)} is being written by another run ({readable(holder)}); "
                "wait for its end, or give another folder"
            ) from None
        except OSError:
            os.close(handle)
            raise


def _take(handle: int) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS_HERE:
            return False
        raise
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
