"""Text in local files: one reader a suffix, a folder is the files inside it in the order of their names.

A reader yields documents: a .txt file is one, every other file holds one a row, in its ``text`` column. The same
line reader serves local .json.gz files and the shard that ``c4`` streams from the hub.
"""

import filecmp
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import DataError

TEXT_COLUMN = "text"
PARQUET_ROWS = 1_000  # rows held in memory at a time


def check_path(path: Path) -> None:
    """Raise DataError unless every file behind ``path`` is readable and begins with text."""
    for file in files_of(path):
        if not any(text.strip() for text in read_file(file)):
            raise DataError(f"{file} holds no text: give a file with at least one window of it")


def files_of(path: Path) -> list[Path]:
    """The file itself, or the readable files of a folder, sorted by relative path, hidden ones skipped."""
    if not path.exists():
        raise DataError(f"no file or folder {path}")
    if path.is_dir():
        inside = (file.relative_to(path) for file in path.rglob("*"))
        names = [name for name in inside if not any(part.startswith(".") for part in name.parts)]
        found = [path / name for name in sorted(names, key=Path.as_posix) if _reader(name) is not None]
        found = [file for file in found if file.is_file()]
        if not found:
            raise DataError(f"folder {path} holds no text file (readable: {READABLE})")
        return found
    if _reader(path) is None:
        raise DataError(f"cannot read {path} as text: its name must end in one of {READABLE}")
    return [path]


def documents(path: Path) -> Iterator[str]:
    """All documents behind ``path``, lazily. Raises DataError at the first file that is not what its name says."""
    for file in files_of(path):
        yield from read_file(file)


def share_a_file(first: Path, second: Path) -> bool:
    """True where both paths lead to one file, by name, link or folder, or to two files of equal content."""
    return any(_same(one, other) for one in files_of(first) for other in files_of(second))


def read_file(file: Path) -> Iterator[str]:
    """Documents of one file, blanks included."""
    reader = _reader(file)
    if reader is None:
        raise DataError(f"cannot read {file} as text: its name must end in one of {READABLE}")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty")
    try:
        yield from reader(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}): give plain text, e.g. in .txt") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a complete gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def json_documents(stream: IO[bytes], where: str) -> Iterator[str]:
    """``text`` of each JSON line of a binary stream (c4's schema), or of each row of one JSON array."""
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
    try:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.lstrip().startswith("["):
                rows = _parse_json(line + lines.read(), f"{where} from line 1")
                yield from (_text_of(row, f"{where} row {index}") for index, row in enumerate(rows))
            elif line.strip():
                yield _text_of(_parse_json(line, f"{where} line {number}"), f"{where} line {number}")
    finally:
        lines.detach()  # the stream is the caller's to close


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def _text_of(row: Any, where: str) -> str:
    """The row's text; half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes ``?``."""
    if isinstance(row, str):
        text = row
    elif isinstance(row, dict) and isinstance(row.get(TEXT_COLUMN), str):
        text = row[TEXT_COLUMN]
    else:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f'{where} has no "{TEXT_COLUMN}" string (it has: {keys})')
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _read_text(file: Path) -> Iterator[str]:
    text = file.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise DataError(f"{file} is binary, not text (it holds zero bytes)")
    yield text.replace("\r\n", "\n")


def _read_json(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        yield from json_documents(stream, str(file))


def _read_json_gz(file: Path) -> Iterator[str]:
    with gzip.open(file, "rb") as stream:
        yield from json_documents(stream, str(file))  # type: ignore[arg-type]


def _read_parquet(file: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if TEXT_COLUMN not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names)
                raise DataError(f'{file} has no "{TEXT_COLUMN}" column (it has: {columns})')
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[TEXT_COLUMN]):
                values: Iterable[Any] = batch.column(0).to_pylist()
                yield from (_text_of(value, f"{file} a row") for value in values if value is not None)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not a readable parquet file: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".jsonl.gz": _read_json_gz,
    ".json.gz": _read_json_gz,
    ".parquet": _read_parquet,
}
READABLE = " ".join(_READERS)


def _reader(file: Path) -> Callable[[Path], Iterator[str]] | None:
    return next((reader for suffix, reader in _READERS.items() if file.name.lower().endswith(suffix)), None)


def _same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
