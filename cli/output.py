"""Where measurements are kept between runs."""

import os
from pathlib import Path

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
