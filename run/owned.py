"""What an earlier run wrote: known by its own record, file by file. Everything else in the folder is the user's.

``run.json`` lists each file with its size and SHA-256. A file that was changed since is the user's, as is one that was
never listed. Runs of version 0.1.0 list nothing: of theirs only the names that 0.1.0 writes count, a model only where
it is a checkpoint we made, and none that is younger than ``run.json``, which is written last.
"""

import hashlib
import json
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from core.output import RECORD, UNFINISHED

PLACES = {
    "analysis": (
        *("pruning_plan.json", "gradient_diagnosis.json", "pruning_comparison.json", "pruning_summary_by_layer.txt"),
        *("groups.parquet", "reconstruction.json", "recovery.json", "verification.json"),
        *("allocation.json", "plan_check.json", "remedy.json", "rounds.json", "calibration_sample.txt"),
    ),
    "evaluation": ("evaluation_results.json",),
    "visualization": ("pruning_ratio_by_layer.png", "score_distribution.png", "gradient_by_layer.png"),
}
PAGE, MODEL, FAILED, GGUF = "report.html", "model", "model.failed", "model.gguf"
# What from_pretrained may read from a folder, whoever put it there.
READ_BY_LOADERS = (".bin", ".jinja", ".json", ".model", ".py", ".safetensors")
READ_BY_TOKENIZERS = ("added_tokens.txt", "merges.txt", "vocab.txt")
READERS = 4  # of files whose sums are told
LATER_NS = 1_000_000_000  # a copied folder's files are a moment apart, in any order


@dataclass(frozen=True)
class Earlier:
    """record: the name of the file that tells of the run, None where none was. files: what it wrote and nobody changed
    since, relative to the folder, the record first."""

    record: str | None = None
    files: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.record == RECORD


def earlier_run(folder: Path) -> Earlier:
    """What the run in ``folder`` owns there; nothing where no record of ours can be read."""
    for name, keys in _RECORDS.items():
        record = _read(folder / name)
        if record is None or record.get("schema_version") != 1 or not keys <= record.keys():
            continue
        listed = record.get("files")
        files = _unchanged(folder, listed) if isinstance(listed, list) else _of_0_1_0(folder, folder / name)
        return Earlier(name, (name, *files))
    return Earlier()


_RECORDS = {RECORD: {"options", "environment", "timings_s"}, UNFINISHED: {"unfinished", "files"}}


def fingerprints(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """For the record: path, bytes, sha256 and time of change of each file. Several are read at once, as a disk can give
    more than one core can add up."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda name: _fingerprint(folder / name, name), names))


def files_below(folder: Path) -> list[str]:
    """Every file below ``folder``, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def in_the_way(folder: Path, earlier: Earlier, writes: Sequence[str]) -> str | None:
    """The first path that is not the earlier run's and stands where a run writes, or would be read with its model.

    writes: which of MODEL and GGUF the run is to write.
    """
    ours = set(earlier.files)
    for name in (RECORD, UNFINISHED, PAGE, *PLACES, *writes):
        path = folder / name
        is_folder = name in PLACES or name == MODEL
        if path.is_symlink() or (path.exists() and path.is_dir() is not is_folder):
            return name
        if not is_folder and path.exists() and name not in ours:
            return name
    inside = [f"{place}/{name}" for place, names in PLACES.items() for name in names]
    found = (name for name in [*inside, *(_read_with_the_model(folder) if MODEL in writes else ())])
    return next((name for name in found if name not in ours and _exists(folder / name)), None)


def _read_with_the_model(folder: Path) -> Iterator[str]:
    for path in sorted((folder / MODEL).glob("*")):
        if path.suffix in READ_BY_LOADERS or path.name in ("README.md", *READ_BY_TOKENIZERS):
            yield f"{MODEL}/{path.name}"


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def is_plain_file(folder: Path, name: str) -> bool:
    """Whether ``name`` is a file inside ``folder`` that no link leads to: a record may not name what lies elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        return False
    path = folder.joinpath(*parts)
    linked = any(folder.joinpath(*parts[:length]).is_symlink() for length in range(1, len(parts) + 1))
    return not linked and path.is_file()


def _unchanged(folder: Path, listed: Sequence[Any]) -> list[str]:
    return [item["path"] for item in listed if _is_as_listed(folder, item)]


def _is_as_listed(folder: Path, item: Any) -> bool:
    """Same size, and written at the same moment or of the same content (a copied folder keeps the content only)."""
    if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not is_plain_file(folder, item["path"]):
        return False
    found = (folder / item["path"]).stat()
    if found.st_size != item.get("bytes"):
        return False
    return found.st_mtime_ns == item.get("mtime_ns") or _sha256(folder / item["path"]) == item.get("sha256")


def _fingerprint(path: Path, name: str) -> dict[str, Any]:
    found = path.stat()
    return {"path": name, "bytes": found.st_size, "sha256": _sha256(path), "mtime_ns": found.st_mtime_ns}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_0_1_0(folder: Path, record: Path) -> list[str]:
    names = [PAGE, GGUF, *(f"{place}/{name}" for place, known in PLACES.items() for name in known)]
    for place in (MODEL, FAILED):
        if is_our_checkpoint(folder / place):
            names += [f"{place}/{path.name}" for path in sorted((folder / place).iterdir()) if may_be_saved(path.name)]
    until = record.stat().st_mtime_ns + LATER_NS
    return [name for name in names if is_plain_file(folder, name) and (folder / name).stat().st_mtime_ns <= until]


def is_our_checkpoint(folder: Path) -> bool:
    """Whether its config lists widths by layer, or its card says who made it (what has a dense model's shape)."""
    config = _read(folder / "config.json")
    if config is None:
        return False
    return "per_layer_config" in config or _made_by_us(folder / "README.md")


def _made_by_us(card: Path) -> bool:
    try:
        return "structured-pruning" in card.read_text(encoding="utf-8")  # a tag of our cards
    except (OSError, ValueError):
        return False


def may_be_saved(name: str) -> bool:
    """Whether a saved model may hold a file of this name."""
    if name in ("README.md", "configuration_pruned.py", "modeling_pruned.py", "merges.txt", "vocab.txt"):
        return True
    if name.endswith(".safetensors"):
        return name.startswith("model")
    return name in _SAVED


_SAVED = {
    *("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.jinja"),
}


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
