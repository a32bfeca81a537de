"""Where a distillation that was killed goes on from.

A checkpoint is a folder of transformers' Trainer (weights that are trained, optimiser, schedule, random numbers, losses
so far) and is worth nothing until ``checkpoint.json`` beside it names it, with a SHA-256 for each of its files and the
key of everything that decides what training does. That file is replaced at once, so there is one complete checkpoint or
none, whenever the process dies. The one before is removed afterwards.

Of several processes each writes what only it knows, and the first on each machine the rest, into a folder of that
machine's own. They go on together, from the same step, or begin together.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core import ranks
from core.errors import reason_of
from core.failures import warn
from core.files import plain, write_json
from core.memory import bytes_text
from core.say import say

EVERY_S = 600.0  # seconds between two of them
MANIFEST = "checkpoint.json"
FREE = 2  # times its own size that a checkpoint leaves free on its disk, since the model is still to be saved


@dataclass
class Checkpoints:
    """folder: for this distillation on this machine. key: all that decides what training does, as JSON can hold it.
    warnings: takes a sentence where one could not be written; none is written then."""

    folder: Path
    key: dict[str, Any]
    warnings: list[str]
    writes: bool = field(default=True, init=False)

    def latest(self, **attempt: Any) -> Path | None:
        """The complete checkpoint of an earlier run with this key; attempt: what else has to agree. None where there is
        none, and where not all processes have that of the same step."""
        step, path, why = self._found(plain(self.key | attempt))
        everywhere = ranks.gathered((step, why), "checkpoint")
        if step is None or any(other != step for other, _ in everywhere):
            told = next((reason for _, reason in everywhere if reason), None)
            if told or any(other is not None for other, _ in everywhere):
                say(f"{self.folder}: {told or 'not all processes have it'}, so distillation begins anew")
            return None
        return path

    def write(self, step: int, save: Callable[[], None], tensors_bytes: int, **attempt: Any) -> None:
        """Call ``save``, which makes the folder ``checkpoint-STEP`` below ``folder`` (every process calls it), and
        believe in it. Where that fails nothing ends: it is said, and no further one is written."""
        if not self.writes:
            return
        path = self.folder / f"checkpoint-{step}"
        failed = _failure(lambda: self._save(path, save, tensors_bytes))
        failed = next(filter(None, ranks.gathered(failed, "checkpoint")), None)  # now each has written its part
        if failed is None:
            failed = _failure(lambda: self._believe(path, step, plain(self.key | attempt)))
            failed = next(filter(None, ranks.gathered(failed, "checkpoint")), None)
        if failed is not None:
            self.writes = False
            _remove(path)
            warn(f"{self.folder} takes no checkpoint of the distillation ({failed}); it goes on without", self.warnings)

    def clear(self) -> None:
        """Once nobody needs them."""
        if not ranks.here().local:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.folder.parent.rmdir()

    def _found(self, key: Any) -> tuple[int | None, Path, str]:
        """The step and folder that the manifest names; a step of None, and why, where that is not to be used."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None, self.folder, ""
        except (OSError, ValueError) as error:
            return None, self.folder, f"the checkpoint cannot be read ({reason_of(error)})"
        try:
            path = self.folder / f"checkpoint-{int(manifest['step'])}"
            if manifest["key"] != key:
                return None, path, "the checkpoint is of another distillation"
            if _sums(path) != manifest["files"]:
                return None, path, "the checkpoint is damaged"
            return int(manifest["step"]), path, ""
        except (OSError, LookupError, TypeError, ValueError) as error:
            return None, self.folder, f"the checkpoint is damaged ({reason_of(error)})"

    def _save(self, path: Path, save: Callable[[], None], tensors_bytes: int) -> None:
        if not ranks.here().local:
            _remove(path)
            free = shutil.disk_usage(self.folder).free
            if free < (1 + FREE) * tensors_bytes:
                wanted = bytes_text((1 + FREE) * tensors_bytes)
                raise OSError(f"{bytes_text(free)} are free, and {wanted} are wanted")
        save()

    def _believe(self, path: Path, step: int, key: Any) -> None:
        if ranks.here().local:
            return
        for file in path.iterdir():
            _flush(file)
        write_json(self.folder / MANIFEST, {"step": step, "key": key, "files": _sums(path)})
        for older in self.folder.glob("checkpoint-*"):
            if older != path:
                _remove(older)


def _failure(act: Callable[[], None]) -> str | None:
    """What a disk says against ``act``; None where it was done."""
    try:
        act()
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save tells of a full disk by the last
        return reason_of(error, 160)
    return None


def _sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of each file, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
