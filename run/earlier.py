"""What a run owns in its output folder: cleared only when there is something to put in its place."""

import shutil
from pathlib import Path

# Everything a run writes; --overwrite replaces these and leaves other files in the folder alone.
OWN_FOLDERS = ("model", "model.failed", "analysis", "evaluation", "visualization")
OWN_FILES = ("model.gguf", "report.html")
RECORD = "run.json"


def clear_earlier_run(folder: Path) -> None:
    """Remove what an earlier run left, its record first: from here on the folder does not look finished."""
    for name in (RECORD, *OWN_FILES):
        (folder / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
