"""What tells one model from another without reading its weights: configuration, and the weight files' outsides."""

import hashlib
from pathlib import Path
from typing import Any

from models.loading import ModelSource
from models.tensors import read_header, weight_files


def model_identity(source: ModelSource) -> dict[str, Any]:
    """{"config_sha256", "files": [{"name", "size_bytes", "mtime_ns", "header_sha256"}]}; shards in the index's order.

    The header names every tensor, its dtype and shape; that its bytes changed shows in the time of the file.
    ModelError as for loading.
    """
    folder = source.folder
    config = folder / "config.json"
    text = config.read_bytes() if config.is_file() else source.config.to_json_string().encode()
    return {
        "config_sha256": hashlib.sha256(text).hexdigest(),
        "files": [_outside(path) for path in weight_files(folder)],
    }


def _outside(path: Path) -> dict[str, Any]:
    _, start = read_header(path)
    with path.open("rb") as file:
        header = file.read(start)
    found = path.stat()
    return {
        "name": path.name,
        "size_bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "header_sha256": hashlib.sha256(header).hexdigest(),
    }
