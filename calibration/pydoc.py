"""``pydoc``: English that every CPython carries: the language reference and the standard library's docstrings.

The reference is ``pydoc_data/topics.py``; docstrings are those of modules, classes and functions. Both are read
with ``ast``, so nothing is imported and no code of the library runs. Much of the text repeats (inherited docstrings,
generated codecs), so a paragraph is kept the first time it occurs and dropped afterwards. The hash of a paragraph
decides its split, 1 in 10 is held out: the split is the same on every machine, and a paragraph that two Python
versions share is on the same side in both.
"""

import ast
import gc
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from inspect import cleandoc
from pathlib import Path

from calibration.paragraphs import is_held_out, normalised, paragraphs
from core.errors import DataError

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
TOPICS_FILE = "pydoc_data/topics.py"
STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True)
class PydocCorpus:
    """Documents of both splits; a document is what remains of one topic or one module, paragraphs in order.

    source: one sentence naming the Python version the text came from.
    """

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]
    source: str


@lru_cache(maxsize=2)
def pydoc_corpus(library: Path | None = None) -> PydocCorpus:
    """Read the corpus of this interpreter (or of another ``library`` folder); takes a few seconds, then cached.

    Raises DataError where the folder holds no Python sources (a zipped standard library).
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    splits: dict[bool, list[str]] = {False: [], True: []}
    with _without_garbage_collection():
        for document in _documents(folder):
            for held_out, kept in _split_new_paragraphs(document, seen).items():
                if kept:
                    splits[held_out].append("\n\n".join(kept))
    if not splits[False] or not splits[True]:
        raise _nothing_under(folder)
    source = f"language reference and standard-library docstrings of Python {platform.python_version()}"
    return PydocCorpus(tuple(splits[False]), tuple(splits[True]), source)


def check_library(library: Path | None = None) -> None:
    """Raise DataError, at once, where the folder holds no Python sources."""
    folder = library or Path(sysconfig.get_path("stdlib"))
    if next(_below(folder), None) is None:
        raise _nothing_under(folder)


def _nothing_under(folder: Path) -> DataError:
    return DataError(f"no Python sources with docstrings under {folder}: give --dataset a text file instead")


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Syntax trees are millions of objects without cycles: collecting while they are built doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _split_new_paragraphs(document: str, seen: set[str]) -> dict[bool, list[str]]:
    """The document's paragraphs that were not ``seen`` before (which is updated), by held out or not."""
    kept: dict[bool, list[str]] = {False: [], True: []}
    for paragraph in paragraphs(document):
        key = normalised(paragraph)
        if key not in seen:
            seen.add(key)
            kept[is_held_out(paragraph)].append(paragraph)
    return kept


def _documents(library: Path) -> Iterator[str]:
    """Topics sorted by name, then one document a module, sorted by its path inside the library."""
    topics = parse(library / TOPICS_FILE)
    if topics is not None:
        yield from _topics(topics)
    for path in sources(library):
        module = parse(path)
        if module is not None:
            yield "\n\n".join(_docstrings(module))


def sources(library: Path) -> list[Path]:
    """Python files of a standard library, sorted by path; tests and installed packages are left out."""
    return sorted(_below(library), key=lambda path: path.relative_to(library).as_posix())


def _below(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def parse(path: Path) -> ast.Module | None:
    """The syntax tree, or None where the file is missing or is no Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules are none of the user's business
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _topics(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            yield from (topics[name] for name in sorted(topics))


def _docstrings(module: ast.Module) -> Iterator[str]:
    """Docstrings in the order of the source, indentation removed."""
    stack: list[ast.AST] = [module]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield cleandoc(docstring)
        children = ast.iter_child_nodes(node)
        stack.extend(reversed([child for child in children if isinstance(child, STATEMENTS)]))
