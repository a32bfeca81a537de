"""From a dataset's name to its text: which documents serve calibration, which serve evaluation, and where they lie.

| name      | calibration                       | evaluation                                        |
|-----------|-----------------------------------|---------------------------------------------------|
| wikitext2 | train split                       | test split                                        |
| c4        | first documents of a train shard  | first 1,100 documents of a validation shard       |
| ptb       | $PTB_DIR/ptb.train.txt            | $PTB_DIR/ptb.test.txt                             |
| pydoc     | 9 of 10 paragraphs, by their hash | the other tenth                                   |
| a path    | 9 of 10 paragraphs, by their hash | the other tenth where the path also serves        |
|           |                                   | calibration, otherwise all of it                  |

Documents of wikitext2, pydoc and paths are joined by a blank line, those of c4 and ptb by a blank, as in the
evaluation code of GPTQ and SparseGPT, so that perplexities compare with published ones.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from calibration import files, hub
from calibration.paragraphs import HELD_OUT_ONE_IN, share
from calibration.pydoc import pydoc_corpus
from core.errors import DataError

CALIBRATION, EVALUATION = "calibration", "evaluation"
C4_EVALUATION_DOCUMENTS = 1_100
PTB_VARIABLE = "PTB_DIR"
PTB_FILES = {CALIBRATION: "ptb.train.txt", EVALUATION: "ptb.test.txt"}


@dataclass(frozen=True)
class Text:
    """Documents in order, what stands between two of them, and one sentence on where they came from."""

    documents: Iterable[str]
    separator: str
    source: str


def check_dataset(name: str) -> None:
    """Raise DataError for whatever is wrong with a dataset and can be known without a tokenizer."""
    if name == "pydoc":
        pydoc_corpus()
    elif name == "ptb":
        for split in (CALIBRATION, EVALUATION):
            files.check_path(_ptb_file(split))
    elif name in NAMED:
        hub.check_hub(name)
    else:
        files.check_path(_existing_path(name))


def calibration_text(name: str) -> Text:
    """Text that only calibration sees. Raises DataError, lazily where documents are streamed."""
    if name in NAMED:
        return NAMED[name](CALIBRATION)
    path = _existing_path(name)
    files.files_of(path)
    source = f"paragraphs of {name} outside the held-out {_fraction()}"
    return Text(_shares(path, held_out=False), "\n\n", source)


def evaluation_text(name: str, calibration_dataset: str | None) -> Text:
    """Text that calibration does not see, given the dataset that calibration used (None: none was used)."""
    if name in NAMED:
        return NAMED[name](EVALUATION)
    path = _existing_path(name)
    if not _also_calibrates(path, calibration_dataset):
        files.files_of(path)
        return Text(files.documents(path), "\n\n", f"{name}, all of it")
    source = f"held-out {_fraction()} of the paragraphs of {name}, the rest being calibration text"
    return Text(_shares(path, held_out=True), "\n\n", source)


def _shares(path: Path, held_out: bool) -> Iterator[str]:
    return filter(None, (share(document, held_out) for document in files.documents(path)))


def _also_calibrates(path: Path, calibration_dataset: str | None) -> bool:
    if calibration_dataset is None or calibration_dataset in NAMED:
        return False
    return files.share_a_file(path, _existing_path(calibration_dataset))


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if not name.strip() or not path.exists():
        known = ", ".join(sorted(NAMED))
        raise DataError(f"dataset {name!r} is neither one of {known} nor a file or folder that exists")
    return path


def _fraction() -> str:
    return f"1/{HELD_OUT_ONE_IN}"


def _wikitext2(split: str) -> Text:
    part = hub.WIKITEXT_SPLITS[split]
    source = f"{part} split of {hub.WIKITEXT_ID}, {hub.WIKITEXT_CONFIG}"
    return Text(hub.wikitext_documents(split), "\n\n", source)


def _c4(split: str) -> Text:
    documents = hub.c4_documents(split)
    source = f"{hub.C4_FILES[split]} of {hub.C4_ID}"
    if split == CALIBRATION:
        return Text(documents, " ", source)
    return Text(
        islice(documents, C4_EVALUATION_DOCUMENTS),
        " ",
        f"first {C4_EVALUATION_DOCUMENTS:,} documents of {source}",
    )


def _ptb(split: str) -> Text:
    file = _ptb_file(split)
    sentences = (line.strip() for text in files.documents(file) for line in text.splitlines())
    return Text(sentences, " ", str(file))


def _ptb_file(split: str) -> Path:
    folder = os.environ.get(PTB_VARIABLE)
    file = Path(folder or ".") / PTB_FILES[split]
    if not folder or not file.is_file():
        found = f"{file} does not exist" if folder else f"{PTB_VARIABLE} is not set"
        raise DataError(
            f"ptb: its hub script no longer loads, and {found}: set {PTB_VARIABLE} to a folder with "
            f"{PTB_FILES[CALIBRATION]} and {PTB_FILES[EVALUATION]}, or give one file: --dataset path/to/ptb.train.txt"
        )
    return file


def _pydoc(split: str) -> Text:
    corpus = pydoc_corpus()
    documents = corpus.calibration if split == CALIBRATION else corpus.evaluation
    return Text(documents, "\n\n", f"{split} split of the {corpus.source}")


NAMED: dict[str, Callable[[str], Text]] = {"c4": _c4, "ptb": _ptb, "pydoc": _pydoc, "wikitext2": _wikitext2}
