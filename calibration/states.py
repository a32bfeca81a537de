"""Whether the text behind a dataset's name is still what it was, told without reading it."""

import hashlib
import json
import platform
import sysconfig
from pathlib import Path
from typing import Any

from calibration import text_files
from calibration.pydoc import sources
from calibration.python_code import code_modules
from calibration.rows import TEXT_COLUMN
from calibration.splits import CALIBRATION, EVALUATION
from calibration.texts import NAMED, existing_path, ptb_file
from core.outsides import outsides


def text_state(name: str, text_column: str = TEXT_COLUMN) -> dict[str, Any] | None:
    """Equal states, equal text: names, sizes and times of the files that are read. None where only the hub knows.

    DataError as for reading; OSError where a file went away in between.
    """
    if name == "pydoc":
        library = Path(sysconfig.get_path("stdlib"))
        return {"python": platform.python_version(), "files": _hash(outsides(sources(library)))}
    if name == "pycode":
        return {"python": platform.python_version(), "files": _hash(outsides(code_modules()))}
    if name == "ptb":
        return {"files": outsides([ptb_file(CALIBRATION), ptb_file(EVALUATION)])}
    if name in NAMED:
        return None
    path = existing_path(name)
    sides = {side: outsides(text_files.files_of(path, text_column, side)) for side in (CALIBRATION, EVALUATION)}
    return {"column": text_column, "files": _hash(sides)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
