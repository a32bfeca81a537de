"""Text behind a path: a file, or the files of a folder in the order of their names.

A folder may be anything that people keep text in: files of their own, the repository of a dataset, or what
``datasets.save_to_disk`` wrote. Files in it that hold no text are passed over with a note; where a dataset comes in
splits, calibration reads ``train`` and evaluation ``test`` (see ``calibration.splits``).
"""

import filecmp
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from calibration.compressed import compression_of
from calibration.readers import READABLE, read_file, reader_of
from calibration.rows import TEXT_COLUMN, NoTextError
from calibration.splits import CALIBRATION, chosen_split, is_metadata
from core.errors import DataError
from core.say import note

# In a folder, files of the other formats are read only where there is none of these.
FIRST_CHOICE = (".txt", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def check_path(path: Path, column: str = TEXT_COLUMN) -> None:
    """Raise DataError unless every file that will be read behind ``path`` begins with text."""
    for file in files_of(path, column):
        _require_text(file, column)


def documents(path: Path, column: str = TEXT_COLUMN, side: str = CALIBRATION) -> Iterator[str]:
    """All documents behind ``path``, lazily. Raises DataError at the first file that is not what its name says."""
    for file in files_of(path, column, side):
        yield from read_file(file, column)


def files_of(path: Path, column: str = TEXT_COLUMN, side: str = CALIBRATION) -> list[Path]:
    """The file itself, or the files of a folder that hold text for ``side``, sorted by relative path.

    Hidden files, and files that describe a dataset, are passed over in silence; empty ones, and those without the
    column, with a note. Raises DataError where nothing is left, with the reason of the first file.
    """
    try:
        if not path.exists():
            raise DataError(f"no file or folder {path}")
        if not path.is_dir():
            _require_readable_name(path)
            return [path]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return _with_text(path, tuple(chosen_split(path, _readable(path), side)), column)


def share_a_file(first: list[Path], second: list[Path]) -> bool:
    """True where both lists hold one file, by name or link, or two files of equal content."""
    try:
        return any(_same(one, other) for one in first for other in second)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error


def plain_bytes(files: list[Path]) -> int | None:
    """Their size together, where size on disk is about the size of the text; None where any is compressed."""
    if any(compression_of(file.name) or file.suffix.lower() in (".parquet", ".arrow") for file in files):
        return None
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None


def _require_readable_name(file: Path) -> None:
    if not file.is_file():
        raise DataError(f"{file} is neither a file nor a folder: save its text to a file first")
    if reader_of(file) is None:
        raise DataError(f"cannot read {file} as text: its name must end in one of {READABLE}")


def _require_text(file: Path, column: str) -> None:
    if not any(text.strip() for text in read_file(file, column)):
        raise NoTextError(f"{file} holds no text: give a file with at least one window of it")


def _readable(folder: Path) -> list[Path]:
    """Files of the formats of first choice, else all that can be read; a note names what a format left out."""
    found = [folder / name for name in sorted(_names(folder), key=Path.as_posix)]
    found = [file for file in found if reader_of(file) is not None and not is_metadata(file) and _is_file(file)]
    first = [file for file in found if file.name.lower().endswith(FIRST_CHOICE)]
    if not found:
        raise DataError(f"folder {folder} holds no text file (readable: {READABLE})")
    if first and len(first) < len(found):
        endings = sorted({"".join(file.suffixes[-2:]) for file in set(found) - set(first)})
        note(
            f"folder {folder}: reads {len(first):,} of {len(found):,} files, not those of other formats "
            f"({' '.join(endings)}); give the path of one to read it"
        )
    return first or found


def _names(folder: Path) -> Iterator[Path]:
    """Relative paths of all files; raises DataError at a folder that cannot be listed, instead of passing over it."""

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read folder {error.filename}: {error.strerror or error}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(parent).relative_to(folder)
        yield from (inside / name for name in names if not name.startswith("."))


def _is_file(file: Path) -> bool:
    """False for pipes and sockets, which would keep a reader waiting, and with a note for links to nothing."""
    try:
        if file.is_symlink() and not file.exists():
            note(f"{file} left out: a link to a file that does not exist")
        return file.is_file()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _with_text_cached(
    folder: Path, files: tuple[tuple[Path, int, int], ...], column: str
) -> tuple[tuple[Path, ...], str]:
    """The files that begin with text, and a note on the others ("" for none)."""
    kept: list[Path] = []
    reasons: list[str] = []
    for file, _, _ in files:
        try:
            _require_text(file, column)
            kept.append(file)
        except NoTextError as error:
            reasons.append(str(error))
    if not kept:
        raise DataError(reasons[0] if len(reasons) == 1 else f"{reasons[0]} (and no other file of {folder} holds text)")
    if not reasons:
        return tuple(kept), ""
    more = f" ({len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
    count = "1 file is" if len(reasons) == 1 else f"{len(reasons)} files are"
    return tuple(kept), f"folder {folder}: {count} left out, since {reasons[0]}{more}"


def _with_text(folder: Path, files: tuple[Path, ...], column: str) -> list[Path]:
    """Those that begin with text; looked at once as long as they stay the same."""
    try:
        state = tuple((file, (seen := file.stat()).st_size, seen.st_mtime_ns) for file in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error
    kept, left_out = _with_text_cached(folder, state, column)
    if left_out:
        note(left_out)
    return list(kept)


def _same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
