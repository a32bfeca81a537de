"""One reader a format: a file in, documents out. A text file is one, every other file holds one a row.

What is compressed (.gz, .bz2, .xz, .zst) is read as what it is inside. The line reader of JSON also serves the shard
that ``c4`` streams from the hub.
"""

import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from calibration.compressed import COMPRESSIONS, compression_of, encoding_of, not_text, open_bytes, open_text
from calibration.rows import TEXT_COLUMN, NoTextError, no_column, texts
from core.errors import DataError

BATCH_ROWS = 1_000  # rows held in memory at a time
PART_BYTES = 8_000_000  # a longer text file is handed on in parts of about this size, which end at a blank line
LFS_POINTER = b"version https://git-lfs"


def read_file(file: Path, column: str = TEXT_COLUMN) -> Iterator[str]:
    """Documents of one file, blanks included. ``column`` is where rows keep their text.

    Raises DataError at the first thing that is not what the file's name says; NoTextError where it is that, but empty.
    """
    reader = reader_of(file)
    if reader is None:
        raise DataError(f"cannot read {file} as text: its name must end in one of {READABLE}")
    _require_a_file(file)
    yield from reader(file, column)


def _require_a_file(file: Path) -> None:
    """Raise DataError for what cannot be opened, would wait for ever (a pipe), or is only a pointer to a file."""
    try:
        if not file.is_file():
            raise DataError(f"{file} is not a file" if file.exists() else f"no file {file} (a broken link, or removed)")
        if file.stat().st_size == 0:
            raise NoTextError(f"{file} is empty")
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DataError(f"{file} is a pointer of Git LFS, not the file itself: run git lfs pull")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def json_documents(stream: IO[bytes], where: str, column: str = TEXT_COLUMN) -> Iterator[str]:
    """``column`` of each JSON line of a binary stream (c4's schema), or of each row of one JSON array."""
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
    try:
        yield from texts(_json_rows(lines, where), column, where)
    finally:
        lines.detach()  # the stream is the caller's to close


def _json_rows(lines: io.TextIOWrapper, where: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.lstrip().startswith("["):
            rows = _parse_json(line + lines.read(), f"{where} from line 1")
            yield from ((f"{where} row {index}", row) for index, row in enumerate(rows))
        elif number == 1 and line.strip() == "{":
            row = _parse_json(line + lines.read(), f"{where} from line 1")
            yield f"{where} row 0", row
        elif line.strip():
            yield f"{where} line {number}", _parse_json(line, f"{where} line {number}")


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def _read_json(file: Path, column: str) -> Iterator[str]:
    with open_text(file) as lines:
        yield from texts(_json_rows(lines, str(file)), column, str(file))


def _read_text(file: Path, column: str) -> Iterator[str]:
    """The whole text; a long one in parts, which put together with blank lines are that text again."""
    rest, before, encoding, searched = bytearray(), 0, None, 0
    with open_bytes(file) as stream:
        for block in iter(lambda: stream.read(PART_BYTES), b""):
            encoding = encoding or encoding_of(block)
            rest += block
            if encoding != "utf-8-sig" or len(rest) < PART_BYTES:
                continue
            cut, searched = rest.rfind(b"\n\n", searched), len(rest) - 1
            if cut > 0:
                yield _decoded(rest[:cut], file, encoding, before)
                rest, before, searched = rest[cut + 2 :], before + cut + 2, 0
    if rest or not before:
        yield _decoded(rest, file, encoding or "utf-8-sig", before)


def _decoded(data: bytearray, file: Path, encoding: str, before: int) -> str:
    with not_text(file, encoding, before):
        text = data.decode(encoding if before == 0 else encoding.removesuffix("-sig"))
    if "\0" in text:
        raise DataError(
            f"{file} is binary, not text (it holds zero bytes): give UTF-8, or UTF-16 with a byte order mark"
        )
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def _read_csv(file: Path, column: str) -> Iterator[str]:
    with open_text(file, newline="") as lines, _fields_of_any_length():
        header = lines.readline()
        marks = "\t" if file.name.lower().removesuffix(compression_of(file.name)).endswith(".tsv") else ",;\t"
        rows = csv.reader(itertools.chain([header], lines), delimiter=max(marks, key=header.count))
        try:
            names = next(rows, [])
            if column not in names:
                first = dict(zip(names, next(rows, names), strict=False))
                strings = [name for name, cell in first.items() if not cell.replace(".", "").isdigit()]
                raise no_column(str(file), "column", column, names, strings)
            place = names.index(column)
            found = ((f"{file} line {rows.line_num}", {column: _cell(row, place)}) for row in rows if row)
            yield from texts(found, column, str(file))
        except csv.Error as error:
            raise DataError(f"{file} line {rows.line_num} is not CSV: {error}") from error


def _cell(row: list[str], place: int) -> str | None:
    return row[place] if place < len(row) and row[place] else None


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    with _arrow_errors(file, "parquet"), pyarrow.parquet.ParquetFile(file) as table:
        _require_column(file, table.schema_arrow, column)
        batches = table.iter_batches(batch_size=BATCH_ROWS, columns=[column])
        yield from _texts_of_batches(batches, file, column)


def _read_arrow(file: Path, column: str) -> Iterator[str]:
    """Both formats of Arrow: the stream that ``save_to_disk`` writes, and the file that Feather is."""
    import pyarrow

    with _arrow_errors(file, "arrow"), pyarrow.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            table = pyarrow.ipc.open_file(source)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            source.seek(0)
            table = pyarrow.ipc.open_stream(source)
            batches = iter(table)
        _require_column(file, table.schema, column)
        yield from _texts_of_batches((batch.select([column]) for batch in batches), file, column)


@contextmanager
def _arrow_errors(file: Path, what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not a readable {what} file: {str(error).splitlines()[0]}") from error
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise DataError(f"cannot read {file}: {reason}") from error


def _require_column(file: Path, schema: Any, column: str) -> None:
    strings = [field.name for field in schema if _is_text(field.type)]
    if column in strings or (column in schema.names and str(schema.field(column).type) == "null"):
        return
    named = [f"{field.name}, a {field.type}" if field.name == column else field.name for field in schema]
    raise no_column(str(file), "column of text" if column in schema.names else "column", column, named, strings)


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of strings, large and dictionary-encoded ones included."""
    import pyarrow.types as of

    values = kind.value_type if of.is_dictionary(kind) else kind
    return bool(of.is_string(values) or of.is_large_string(values) or of.is_string_view(values))


def _texts_of_batches(batches: Iterator[Any], file: Path, column: str) -> Iterator[str]:
    values = (value for batch in batches for value in batch.column(0).to_pylist())
    yield from texts(((f"{file} a row", {column: value}) for value in values), column, str(file))


Reader = Callable[[Path, str], Iterator[str]]
_ROWS: dict[str, Reader] = {".jsonl": _read_json, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv}
_STREAMS: dict[str, Reader] = {".txt": _read_text, **_ROWS, ".ndjson": _read_json, ".md": _read_text}
_READERS: dict[str, Reader] = {
    **_STREAMS,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    **{kind + pressed: reader for kind, reader in _STREAMS.items() for pressed in COMPRESSIONS},
}
READABLE = f"{' '.join((*_STREAMS, '.parquet', '.arrow'))}, the former also with {' '.join(COMPRESSIONS)}"


def reader_of(file: Path) -> Reader | None:
    return next((reader for suffix, reader in _READERS.items() if file.name.lower().endswith(suffix)), None)
