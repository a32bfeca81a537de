"""``pycode``: code of the standard library, a second kind of text that needs no network.

The hash of a module's name decides its split, 1 in 10 is held out: the split is the same on every machine.
Docstrings and comments are left out: docstrings are what ``pydoc`` is made of, and calibration on code must not show a
model the paragraphs that it is evaluated on. One interpreter always gives the same text, which
``calibration/code_file.py`` writes to a file.
"""

import ast
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from calibration.paragraphs import is_held_out
from calibration.pydoc import parse
from core.errors import DataError
from core.progress import tqdm

DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
PROGRESS_DELAY_S = 2.0


def code_modules(library: Path | None = None) -> list[Path]:
    """Modules at the top of this interpreter's library (or another's folder), sorted by name.

    Raises DataError where there are none (a zipped standard library).
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.glob("*.py"))
    if not paths:
        raise DataError(f"no Python sources in {folder}: give another text")
    return paths


def code_documents(library: Path | None = None, held_out: bool | None = None) -> Iterator[str]:
    """The code of ``code_modules``, a document each. held_out: of one side of the split alone; None: all."""
    paths = [path for path in code_modules(library) if held_out is None or is_held_out(path.name) == held_out]
    for path in tqdm(paths, desc="reading code", unit="module", delay=PROGRESS_DELAY_S, leave=False):
        module = parse(path)
        if module is not None:
            yield without_docstrings(module)


def code_source() -> str:
    """Where the code comes from."""
    return f"standard library's code of Python {platform.python_version()}"


def without_docstrings(module: ast.Module) -> str:
    """The module's source as ``ast.unparse`` writes it; a body that was only a docstring becomes ``pass``."""
    for node in ast.walk(module):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(module)
