"""Where a run keeps the checkpoints of its distillation: in the measurement cache, under everything that decides it."""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core import ranks
from core.errors import OutputError
from core.files import plain
from core.plan import PruningPlan
from core.say import note
from pruning.recovery.checkpoints import MANIFEST, Checkpoints
from run.cache_keys import distillation_key
from run.lock import lock

if TYPE_CHECKING:
    from run.session import Session

KEPT_DAYS = 14  # what no run has asked for in so long is removed by the next distillation
FOLDER = re.compile(r"distillation-[0-9a-f]{64}")


@contextmanager
def checkpoints_of(
    session: "Session", plan: PruningPlan, train: np.ndarray, check: np.ndarray, decides: Mapping[str, Any]
) -> Iterator[Checkpoints | None]:
    """Inside, the checkpoints of this distillation are this run's alone; afterwards they wait for ``session.complete``.

    train, check: windows, int64. decides: what else training depends on. None without a cache, and where another run
    works on the very same.
    """
    cache, here = session.cache.folder, ranks.here()
    if cache is None:
        yield None
        return
    key = distillation_key(session.cache.common, session.settings, plan, session.calibration, train, check)
    key = ranks.from_first(plain(key | dict(decides)), "key of a distillation")
    name = f"distillation-{hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()}"
    folder = cache / name / f"machine-{here.rank - here.local}"
    failed = held = None
    if not here.local:
        try:
            _remove_old(cache, name)
            folder.mkdir(parents=True, exist_ok=True)
            held = lock(folder, folder)
        except OutputError:
            failed = "another run does the same, and keeps them"
        except OSError as error:
            failed = f"{folder}: {error.strerror}"
    failed = next(filter(None, ranks.gathered(failed, "folder for checkpoints")), None)
    if failed is not None:
        note(f"there are no checkpoints of this distillation: {failed}")
    kept = Checkpoints(folder, key, session.warnings)
    try:
        yield kept if failed is None else None
    finally:
        if held is not None:
            held.release()
        if failed is None:
            session.when_complete.append(kept.clear)
            _remove_empty(folder)


def _remove_old(cache: Path, own: str) -> None:
    """A folder in use is younger: it gets a checkpoint every few minutes."""
    for folder in cache.glob("distillation-*"):
        if not FOLDER.fullmatch(folder.name) or folder.name == own or folder.is_symlink():
            continue
        with suppress(OSError):
            last = max(path.stat().st_mtime for path in (folder, *folder.glob("*"), *folder.glob(f"*/{MANIFEST}")))
            if time.time() - last > KEPT_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    """Where no checkpoint was due."""
    if not ranks.here().local:
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
