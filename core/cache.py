"""Results kept between runs: an entry is one file, named after the hash of everything the result depends on.

The file is in the safetensors format, so reading it runs no code. Beside the arrays its metadata hold a SHA-256 over
everything in it, and as JSON the full key and further facts. An entry is believed only if that sum is right and the
key inside is the key asked for. Writing goes through a temporary name in the same folder, so of two programs that
write one entry the later wins and a reader sees one or the other, whole.
"""

import contextlib
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.files import is_temporary, plain, write_atomically

SUFFIX = ".safetensors"
METADATA = "entry"
HALF_WRITTEN_S = 3600


class BadEntryError(Exception):
    """A file stands where the entry should, and it is not that entry; ``str(error)`` says why. Measure again."""


@dataclass(frozen=True)
class Entry:
    """arrays: by name. facts: whatever JSON can hold (NaN and Inf would come back as None)."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def entry_path(folder: Path, part: str, key: dict[str, Any]) -> Path:
    """Where the entry for ``key`` lies. part: what it is (``importance``), for people who look into the folder."""
    return folder / f"{part}-{hashlib.sha256(_json(key).encode()).hexdigest()}{SUFFIX}"


def write_entry(path: Path, key: dict[str, Any], entry: Entry) -> Path:
    """Write the entry whole or not at all; equal entries give equal bytes."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in entry.arrays.items()}
    about = _json({"key": key, "facts": entry.facts})
    # One text, because the format gives several in no fixed order.
    metadata = {METADATA: f"{_checksum(about, arrays)} {about}"}
    _remove_half_written(path.parent)
    return write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def _remove_half_written(folder: Path) -> None:
    """What killed runs left here. An entry is written in moments, so one that took an hour has no writer any more."""
    for path in folder.glob(f".*{SUFFIX}"):
        part = re.fullmatch(r"\.([a-z_0-9]+-[0-9a-f]{64})\..*", path.name)
        with contextlib.suppress(OSError):  # another run may be tidying too
            if part and is_temporary(path, part[1], SUFFIX) and time.time() - path.stat().st_mtime > HALF_WRITTEN_S:
                path.unlink()


def read_entry(path: Path, key: dict[str, Any]) -> Entry | None:
    """The entry for ``key``, None where there is no file. BadEntryError: it cannot be read, does not add up to its
    checksum, or was made for another key."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.exists():
            return None
        with safe_open(path, "np") as file:
            checksum, about = file.metadata()[METADATA].split(" ", 1)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        intact, found = checksum == _checksum(about, arrays), json.loads(about)
    except FileNotFoundError:
        return None  # removed between the two looks
    except OSError as error:
        raise BadEntryError(f"unreadable ({error.strerror or error})") from None
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise BadEntryError(f"damaged ({error})") from None
    if not intact:
        raise BadEntryError("damaged (its checksum does not match)")
    if found["key"] != json.loads(_json(key)):
        raise BadEntryError("foreign (it was made for another key)")
    return Entry(arrays, found["facts"])


def _json(value: dict[str, Any]) -> str:
    return json.dumps(plain(value), allow_nan=False)


def _checksum(about: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(f"{about}\n".encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
