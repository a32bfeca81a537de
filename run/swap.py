"""Put a finished run in the place of an earlier one, so that a kill at any moment leaves one of the two, or enough to
go on with.

Everything new lies in ``<staging>/new`` on the same file system, so each file takes its place by one rename. A journal
is written before the first of them: whoever finds it carries the rest out. An error on the way undoes what was done.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

NEW, OLD, JOURNAL = "new", "old", "journal.json"


def swap(folder: Path, staging: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Move ``old`` aside and the files ``new`` of ``<staging>/new`` into ``folder``; names are relative to it.

    What marks a finished run comes first in ``old`` and last in ``new``. On any error or interruption the folder is as
    before, and the new files are where they were.
    """
    try:
        _write_journal(staging, old, new)
        _carry_out(folder, staging, old, new)
    except BaseException:
        _undo(folder, staging, old, new)
        (staging / JOURNAL).unlink(missing_ok=True)
        raise
    (staging / JOURNAL).unlink()


def resume(folder: Path, staging: Path) -> bool:
    """Carry out what a killed run had begun; False where it had not come so far."""
    try:
        journal = json.loads((staging / JOURNAL).read_text(encoding="utf-8"))
        old, new = journal["old"], journal["new"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return False
    _carry_out(folder, staging, old, new)
    (staging / JOURNAL).unlink()
    return True


def move(source: Path, target: Path) -> None:
    """By rename, with the folders that ``target`` needs; never over a file that is there."""
    if target.exists() or target.is_symlink():
        raise FileExistsError(None, "it is there already", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _write_journal(staging: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Whole, and on the disk before the first rename: after a power cut it counts as much as after a kill."""
    half_written = staging / f"{JOURNAL}.part"
    with half_written.open("w", encoding="utf-8") as file:
        json.dump({"old": list(old), "new": list(new)}, file)
        file.flush()
        os.fsync(file.fileno())
    half_written.rename(staging / JOURNAL)


def _carry_out(folder: Path, staging: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Each step looks whether it has been done, so that the whole can be begun again."""
    placed = {name for name in new if not (staging / NEW / name).exists()}
    for name in old:
        if name not in placed and (folder / name).exists() and not (staging / OLD / name).exists():
            move(folder / name, staging / OLD / name)
    for name in new:
        if name not in placed:
            move(staging / NEW / name, folder / name)
    _remove_empty_folders(folder, old)


def _undo(folder: Path, staging: Path, old: Sequence[str], new: Sequence[str]) -> None:
    for name in reversed(new):
        if not (staging / NEW / name).exists() and (folder / name).exists():
            move(folder / name, staging / NEW / name)
    for name in reversed(old):
        if (staging / OLD / name).exists():
            move(staging / OLD / name, folder / name)
    _remove_empty_folders(folder, new)


def _remove_empty_folders(folder: Path, names: Iterable[str]) -> None:
    """Folders of the named files that nothing is left in."""
    parents = {parent for name in names for parent in (folder / name).parents if folder in parent.parents}
    for parent in sorted(parents, reverse=True):
        with contextlib.suppress(OSError):
            parent.rmdir()
