"""The two texts that losses are read on: held-out ``pydoc``, and the standard library's code without its prose.

Code is out of domain for the models: they were trained on language reference and docstrings alone. Docstrings are
found with ``ast``, comments with ``tokenize``; both leave, and with them every line that is blank then. Nothing is
imported or run. The text is that of the running Python, whose version ``source`` names.
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
from core.windows import TokenWindows

IN_DOMAIN, OUT_OF_DOMAIN = "pydoc", "code"
TABLES = frozenset({"pydoc_data", "encodings", "lib2to3", "unidata"})  # folders of data written as code
Span = tuple[tuple[int, int], tuple[int, int]]  # (row from 1, column) of start and end


def held_out_windows(tokenizer: Any, count: int, seq_len: int) -> dict[str, TokenWindows]:
    """``count`` windows of each text; those of pydoc lie evenly over all of its held-out text."""
    every = evaluation_windows("pydoc", tokenizer, seq_len, None, "pydoc")
    chosen = np.unique(np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(np.int64))
    spread = TokenWindows(every.ids[chosen], every.dataset, every.split, every.source)
    return {IN_DOMAIN: spread, OUT_OF_DOMAIN: code_windows(tokenizer, count, seq_len)}


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
