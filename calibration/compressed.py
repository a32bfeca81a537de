"""Bytes and characters of a local file: compression by the end of its name, encoding by its first bytes."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from core.errors import DataError, reason_of


def _zstd(file: Path) -> IO[bytes]:
    import pyarrow

    return cast("IO[bytes]", pyarrow.input_stream(str(file), compression="zstd"))


_DECOMPRESSORS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
COMPRESSIONS = tuple(_DECOMPRESSORS)

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def compression_of(name: str) -> str:
    """The suffix that says how a file is compressed, or an empty string."""
    return next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")


@contextmanager
def open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """What the file holds, decompressed as it is read. Raises DataError for all that goes wrong inside."""
    compression = compression_of(file.name)
    try:
        with _DECOMPRESSORS[compression](file) if compression else file.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a complete {_called(compression)} file: {error}") from error
    except OSError as error:
        if compression and error.errno is None:  # bz2 and zstd complain of their data so
            raise DataError(f"{file} is not a complete {_called(compression)} file: {reason_of(error)}") from error
        raise DataError(f"cannot read {file}: {error.strerror or reason_of(error)}") from error


def encoding_of(first: bytes) -> str:
    """The encoding that the byte order mark at the start of a file names; UTF-8, with or without a mark, otherwise."""
    return next((encoding for mark, encoding in _MARKS if first.startswith(mark)), "utf-8-sig")


@contextmanager
def open_text(file: Path, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Characters of the file. Raises DataError as ``open_bytes`` does, and where the bytes are not those of text."""
    with open_bytes(file) as stream:
        buffered = io.BufferedReader(cast("io.RawIOBase", _Raw(stream)), 1 << 16)
        encoding = encoding_of(buffered.peek(4)[:4])
        with io.TextIOWrapper(buffered, encoding=encoding, newline=newline) as lines, not_text(file, encoding):
            yield lines


@contextmanager
def not_text(file: Path, encoding: str = "utf-8-sig", before: int = 0) -> Iterator[None]:
    """Turn a decoding error inside into a DataError; ``before`` bytes of the file precede what is being decoded."""
    try:
        yield
    except UnicodeError as error:
        name = encoding.removesuffix("-sig").upper()
        place = f" (byte {before + error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(
            f"{file} is not {name} text{place}: convert it, e.g. iconv -f latin1 -t utf-8, if it is text at all"
        ) from error


class _Raw(io.RawIOBase):
    """Any readable stream as a raw one, for ``BufferedReader`` (pyarrow's streams do not look into the future)."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _called(compression: str) -> str:
    return {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}[compression]
