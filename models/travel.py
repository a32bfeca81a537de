"""The files that travel with a model: licenses, notices, use policies, tokenizer, chat templates, generation settings.

Whatever lies beside the dense model's weights goes along, by exclusion: documents (a kind of text, or no suffix) and
the JSON files that tokenizers, processors and generation read. Left behind are weights of any format, configuration
and code (the pruned model has its own), the model card (it describes another model), data, hidden files, and folders
other than those of chat templates and licenses.
"""

import fnmatch
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache

from core.hub import offline_if_unreachable

DOCUMENTS = ("", ".md", ".txt", ".pdf", ".html", ".rst", ".rtf", ".cff", ".bib")
VOCABULARIES = (".model", ".spm", ".tiktoken", ".jinja", ".vocab", ".bpe")
SETTINGS = (  # JSON has many uses; these are the ones that say nothing about the dense model's weights
    "*token*.json",
    "vocab*.json",
    "merges*.json",
    "tekken.json",
    "chat_template*.json",
    "generation_config.json",
    "*processor_config.json",
)
FOLDERS = ("additional_chat_templates", "license", "licenses", "licence", "licences", "legal")
LEFT_BEHIND = ("readme*", "requirements*.txt")
LARGEST_BYTES = {"document": 16 * 2**20, "vocabulary": 256 * 2**20}
FETCHED = (  # of a hub's repository, beside what loading the model downloads anyway
    *("LICEN[SC]E*", "NOTICE*", "COPYING*", "*USE_POLICY*", "*[Tt]erms*", "*TERMS*", "README.md"),
    *("*token*.json", "*.model", "*.tiktoken", "*.jinja", "vocab*", "merges.txt", "generation_config.json"),
)


def travelling_files(folder: Path) -> list[Path]:
    """Paths, relative to ``folder`` (a checkpoint, or a snapshot in the hub's cache), of what travels; sorted."""
    return sorted(path.relative_to(folder) for path in _candidates(folder) if _travels(path, folder))


def carry_files(base: Path | None, folder: Path) -> list[Path]:
    """Copy what travels from ``base`` into ``folder``, byte for byte; returns the relative paths. None: nothing."""
    if base is None:
        return []
    found = travelling_files(base)
    for path in found:
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(base / path, target)
    return found


def dense_folder(path: str, revision: str | None = None) -> Path | None:
    """Where the dense model's files lie: the folder itself, or the snapshot of a hub id in the cache.

    Of a hub id the small files that loading does not ask for (license, policy, card) are fetched first where the hub
    answers. None where there is neither. revision: the commit that was loaded.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        with offline_if_unreachable():
            return Path(snapshot_download(path, revision=revision, allow_patterns=list(FETCHED)))
    except Exception:  # of any type, by version of the client; what is cached already will do
        return _cached_snapshot(path, revision)


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    try:
        config = try_to_load_from_cache(repository, "config.json", revision=revision)
    except ValueError:  # no hub id
        return None
    return Path(config).parent if isinstance(config, str) else None


def _candidates(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.lower() in FOLDERS and path.is_dir() and not path.is_symlink():
            yield from path.iterdir()
        else:
            yield path


def _travels(path: Path, folder: Path) -> bool:
    name, kind = path.name.lower(), _kind(path)
    if kind is None or name.startswith(".") or any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_BEHIND):
        return False
    return path.is_file() and _stays_inside(path, folder) and path.stat().st_size <= LARGEST_BYTES[kind]


def _kind(path: Path) -> str | None:
    """What decides the largest size; None for a file that does not travel at all."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if suffix in VOCABULARIES or name in ("merges.txt", "vocab.txt"):
        return "vocabulary"
    if suffix == ".json":
        return "vocabulary" if any(fnmatch.fnmatch(name, pattern) for pattern in SETTINGS) else None
    # A name like LICENSE-2.0 or NOTICE.third_party has no suffix that means anything.
    legal = name.startswith(("license", "licence", "notice", "copying", "copyright"))
    return "document" if suffix in DOCUMENTS or (legal and suffix not in (".py", ".json")) else None


def _stays_inside(path: Path, folder: Path) -> bool:
    """A link may lead to the hub cache's blobs, as all files of a snapshot do, and nowhere else outside the folder."""
    target = path.resolve()
    return target.is_relative_to(folder.resolve()) or (
        target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    )
