"""Datasets in splits: which files of a repository, or of a saved ``DatasetDict``, serve which stage.

| the folder                                              | calibration    | evaluation                              |
|---------------------------------------------------------|----------------|-----------------------------------------|
| files named as the hub names them (train-00000-of-…),   | ``train``, or  | ``test``, else ``validation``, else     |
| or a ``DatasetDict`` saved to disk                      | the first one  | what calibration reads (see ``texts``)  |
| anything else                                           | all files      | all files                               |

Both are split by hash or compared by paragraph afterwards, as any two texts are.
"""

import re
from pathlib import Path

from core.say import note

CALIBRATION, EVALUATION = "calibration", "evaluation"
PREFERRED = {
    CALIBRATION: ("train", "validation", "valid", "dev"),
    EVALUATION: ("test", "validation", "valid", "dev", "train"),
}

# train-00000-of-00001.parquet, train_sft-00000-of-00003-0a1b2c.parquet, c4-train.00000-of-01024.json.gz
_SHARD = re.compile(r"(.+?)[-.]\d{5}-of-\d{5}")
_SAVED = "dataset_dict.json"
_METADATA = re.compile(
    r"(dataset_infos?|dataset_dict|state|dataset-metadata|croissant)\.json|cache-.*\.arrow|(readme|license|notice|"
    r"licence|changelog|contributing|code_of_conduct|security|citation)(\.md|\.txt)?",
    re.IGNORECASE,
)


def is_metadata(file: Path) -> bool:
    """Whether the name is that of a file that describes a dataset or a repository, not one that holds its text.

    Names of files that a folder of plain text may well hold (license.txt) count only in Markdown.
    """
    return _METADATA.fullmatch(file.name) is not None and file.suffix.lower() != ".txt"


def chosen_split(folder: Path, files: list[Path], side: str) -> list[Path]:
    """The files of one split where the folder has splits, all of them otherwise; a note names what is left out."""
    splits = {file: _split_of(folder, file) for file in files}
    names = sorted({name for name in splits.values() if name})
    if len(names) < 2:
        return files
    wanted = next((name for name in PREFERRED[side] if name in names), names[0])
    note(
        f"folder {folder}: {side} reads its {wanted} split (it has: {', '.join(names)}); to read another "
        "one, give the path of its files"
    )
    return [file for file in files if splits[file] in (wanted, "")]


def _split_of(folder: Path, file: Path) -> str:
    if (folder / _SAVED).is_file():
        return file.relative_to(folder).parts[0] if file.parent != folder else ""
    shard = _SHARD.match(file.name)
    if shard is None:
        return ""
    words = re.split(r"[-_.]", shard.group(1).lower())
    return next((word for word in words if word in PREFERRED[EVALUATION]), shard.group(1))
