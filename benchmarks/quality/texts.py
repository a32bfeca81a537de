"""The two texts that losses are read on: held-out ``pydoc``, and the standard library's code without its prose.

Code is out of domain for the models: they were trained on language reference and docstrings alone. Docstrings are
found with ``ast``, comments with ``tokenize``; both leave, and with them every line that is blank then. Nothing is
imported or run. The text is that of the running Python, whose version ``source`` names.

Each text has two parts that share no window: ``development``, to look at while a method is being changed, and
``confirmation``, for figures that nothing was chosen by.
"""

import ast
import hashlib
import io
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration import evaluation_windows
from calibration.pydoc import SKIPPED_FOLDERS
from core.errors import DataError
from core.windows import TokenWindows

IN_DOMAIN, OUT_OF_DOMAIN = "pydoc", "code"
DEVELOPMENT, CONFIRMATION = PARTS = ("development", "confirmation")
DEVELOPMENT_WINDOWS = 48
TABLES = frozenset({"pydoc_data", "encodings", "lib2to3", "unidata"})  # folders of data written as code
Span = tuple[tuple[int, int], tuple[int, int]]  # (row from 1, column) of start and end


def held_out_windows(tokenizer: Any, part: str, count: int, seq_len: int) -> dict[str, TokenWindows]:
    """Up to ``count`` windows of one part of each text.

    pydoc: the windows of ``development`` lie evenly over all of its held-out text, those of ``confirmation`` over the
    rest. Code: modules in the order of their paths' SHA-256, first those of ``development``. Raises DataError where a
    text has no window for this part.
    """
    prose = evaluation_windows("pydoc", tokenizer, seq_len, None, "pydoc")
    seen = evenly(np.arange(len(prose)), DEVELOPMENT_WINDOWS)
    code = code_windows(tokenizer, DEVELOPMENT_WINDOWS + count, seq_len)
    if part == DEVELOPMENT:
        chosen, modules = seen, code.ids[:DEVELOPMENT_WINDOWS]
    else:
        chosen, modules = np.setdiff1d(np.arange(len(prose)), seen), code.ids[DEVELOPMENT_WINDOWS:]
    found = {
        IN_DOMAIN: TokenWindows(prose.ids[evenly(chosen, count)], prose.dataset, prose.split, prose.source),
        OUT_OF_DOMAIN: TokenWindows(modules[:count], code.dataset, code.split, code.source),
    }
    for name, windows in found.items():
        if not len(windows):
            raise DataError(
                f"{name} has no window of {seq_len:,} tokens left for {part}: give shorter windows, or the other of "
                f"{', '.join(PARTS)}"
            )
    return found


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the values, or all if there are fewer, at even distances."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(np.int64))]


def code_windows(tokenizer: Any, count: int, seq_len: int, library: Path | None = None) -> TokenWindows:
    """One window from the middle of each of ``count`` modules, in the order of their paths' SHA-256; BOS first."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text_len, rows = seq_len - len(bos), []
    for source in _sources(library or Path(sysconfig.get_path("stdlib"))):
        ids = tokenizer(source, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= text_len:
            start = (len(ids) - text_len) // 2
            rows.append(bos + ids[start : start + text_len])
        if len(rows) == count:
            break
    source = f"standard library of Python {platform.python_version()}, code without docstrings and comments"
    return TokenWindows(np.array(rows, dtype=np.int64).reshape(-1, seq_len), OUT_OF_DOMAIN, "evaluation", source)


def _sources(library: Path) -> Iterator[str]:
    relative = [path.relative_to(library) for path in library.rglob("*.py")]
    kept = [path for path in relative if (SKIPPED_FOLDERS | TABLES).isdisjoint(path.parts)]
    for path in sorted(kept, key=lambda path: hashlib.sha256(path.as_posix().encode()).hexdigest()):
        try:
            with tokenize.open(library / path) as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old modules
                yield without_prose(file.read())
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue  # kept in the library on purpose, to test tools with


def without_prose(source: str) -> str:
    """Python source without docstrings, comments and blank lines; what is left need not compile."""
    lines = source.splitlines(keepends=True)
    for (row, start), (end_row, end) in sorted([*_docstrings(source, lines), *_comments(source)], reverse=True):
        tail = lines[end_row - 1][end:]
        lines[row - 1 : end_row] = [lines[row - 1][:start] + tail]
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def _docstrings(source: str, lines: list[str]) -> Iterator[Span]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is None:
                continue
            text = node.body[0]
            assert text.end_lineno is not None
            assert text.end_col_offset is not None
            yield (
                (text.lineno, _characters(lines[text.lineno - 1], text.col_offset)),
                (text.end_lineno, _characters(lines[text.end_lineno - 1], text.end_col_offset)),
            )


def _characters(line: str, offset_bytes: int) -> int:
    """``ast`` counts columns in UTF-8 bytes."""
    return len(line.encode()[:offset_bytes].decode())


def _comments(source: str) -> Iterator[Span]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start, token.end
