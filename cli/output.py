"""What a run owns in its output folder: cleared only when there is something to put in its place."""

import os
import shutil
from pathlib import Path

# Everything a run writes; --overwrite replaces these and leaves other files in the folder alone.
OWN_FOLDERS = ("model", "model.failed", "analysis", "evaluation", "visualization")
OWN_FILES = ("model.gguf", "report.html")
RECORD = "run.json"
CACHE_VARIABLE, NO_CACHE = "GLOBAL_PRUNING_CACHE", "none"


def cache_folder(asked: str | None) -> Path | None:
    """``--cache_dir``, else what the environment names, else global-pruning in the user's cache folder.

    None where ``none`` is asked for, and where the user has no home.
    """
    name = asked or os.environ.get(CACHE_VARIABLE)
    if name:
        return None if name == NO_CACHE else Path(name).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "global-pruning"
    except RuntimeError:
        return None


def clear_earlier_run(folder: Path) -> None:
    """Remove what an earlier run left, its record first: from here on the folder does not look finished."""
    for name in (RECORD, *OWN_FILES):
        (folder / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
