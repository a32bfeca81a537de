"""Our packages have plain names (``core``, ``models`` ...), and so may those of the folder a user works in.

``find_our_rooms()`` makes the names mean ours in this process, whatever PYTHONPATH or the current folder hold. All
other names are looked up as before. This module has a name that nobody else takes; it imports none of ours.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent
ROOMS = ("calibration", "cli", "core", "diagnostics", "evaluation", "importance", "models", "pruning", "run")


class OurRooms(MetaPathFinder):
    """Finds the packages of ROOMS beside this file and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or fullname not in ROOMS or not (ROOT / fullname / "__init__.py").is_file():
            return None
        return PathFinder.find_spec(fullname, [str(ROOT)])


def find_our_rooms() -> None:
    """From here on our rooms are ours. ImportError (one line) where a package of the same name was imported before."""
    if not any(isinstance(finder, OurRooms) for finder in sys.meta_path):
        sys.meta_path.insert(0, OurRooms())
    for name in ROOMS:
        module = sys.modules.get(name)
        if module is not None and not _is_ours(module):
            raise ImportError(
                f"a package named {name!r} was imported before ours ({_place(module)}): start Python without it, or "
                "import global_pruning first"
            )


def _is_ours(module: ModuleType) -> bool:
    return Path(_place(module)).resolve() in (ROOT / module.__name__, ROOT / module.__name__ / "__init__.py")


def _place(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "built in"))
