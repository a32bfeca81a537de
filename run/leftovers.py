"""What killed runs leave: recognised by its name and by what it is, and removed by the next run into that folder.

Nothing of this is looked at unless the folder is locked, so no living run owns any of it.
"""

import json
import re
import shutil
from pathlib import Path
from uuid import uuid4

from core.files import is_temporary
from run.lock import LOCK
from run.owned import FAILED, GGUF, MODEL, PAGE, PLACES, RECORD, may_be_saved
from run.swap import JOURNAL, NEW, OLD, resume

STAGING = re.compile(r"\.global-pruning-[0-9a-f]{12}")
MARK = "claim.json"


def name_of_staging() -> str:
    return f".global-pruning-{uuid4().hex[:12]}"


def make_staging(staging: Path) -> None:
    """The folder with its mark and an empty ``new`` inside."""
    staging.mkdir()
    (staging / MARK).write_text(json.dumps({"made_by": "global-pruning"}) + "\n", encoding="utf-8")
    (staging / NEW).mkdir()


def remove_staging(staging: Path) -> None:
    """The mark last, so that what a kill leaves of it is still known. With a journal in it, it is needed and stays."""
    if (staging / JOURNAL).exists():
        return
    for name in (NEW, OLD):
        shutil.rmtree(staging / name, ignore_errors=True)
    (staging / f"{JOURNAL}.part").unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)


def is_staging(path: Path) -> bool:
    """By name, and by holding nothing that a staging folder does not hold."""
    if not STAGING.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
        return False
    inside = {item.name for item in path.iterdir()}
    return inside <= {MARK, NEW, OLD, JOURNAL, f"{JOURNAL}.part"} and (MARK in inside or not inside)


def is_ours(path: Path) -> bool:
    """Whether an entry of an output folder is there for the time of a run only."""
    return path.name == LOCK or is_staging(path)


def tidy(folder: Path) -> bool:
    """Finish what a killed run had begun to put in place, and remove what is left of others. Was there such a run?"""
    resumed = False
    for path in sorted(folder.iterdir()):
        if is_staging(path):
            resumed |= resume(folder, path)
            remove_staging(path)
        elif _is_half_a_model(path):
            shutil.rmtree(path)
    for path in _half_written(folder):
        path.unlink()
    return resumed


def _is_half_a_model(path: Path) -> bool:
    """The folder in which 0.1.0 saved a model, before it was renamed: closed to others and holding nothing else."""
    if not is_temporary(path, MODEL, ""):
        return False
    return all(may_be_saved(item.name) or item.name.endswith(".tmp") for item in path.iterdir())


def _half_written(folder: Path) -> list[Path]:
    names = [RECORD, PAGE, GGUF, f"{MODEL}/README.md", f"{FAILED}/README.md"]
    names += [f"{place}/{name}" for place, known in PLACES.items() for name in known]
    found = []
    for path in (folder / name for name in names):
        beside = path.parent.glob(f".{path.stem}.*{path.suffix}")
        found += [item for item in beside if item.is_file() and is_temporary(item, path.stem, path.suffix)]
    return found
