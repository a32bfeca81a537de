"""From a dataset's name to its text: which documents serve calibration, which serve evaluation, and where they lie.

| name      | calibration                       | evaluation                                        |
|-----------|-----------------------------------|---------------------------------------------------|
| wikitext2 | train split                       | test split                                        |
| c4        | first documents of a train shard  | first 1,100 documents of a validation shard       |
| ptb       | $PTB_DIR/ptb.train.txt            | $PTB_DIR/ptb.test.txt                             |
| pydoc     | 9 of 10 paragraphs, by their hash | the other tenth                                   |
| pycode    | 9 of 10 modules, by their name    | the other tenth                                   |
| a path    | 9 of 10 paragraphs, by their hash | the other tenth where the path also serves        |
|           |                                   | calibration, otherwise all that does not calibrate |
| self      | windows that the model writes     | other windows that it writes (``self_text``)      |

Two paths are told apart by their files first, then by their paragraphs: what calibrates is not evaluated, whatever
file or format it stands in. Documents of wikitext2, pydoc, pycode and paths are joined by a blank line, those
of c4 and ptb by a blank, as in the evaluation code of GPTQ and SparseGPT, so that perplexities compare with published
ones.
Several texts may calibrate (``pydoc,self``): each is split as it would be alone, and evaluation leaves out all of them.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from calibration import hub_text, text_files
from calibration.overlap import CalibrationText, Unseen
from calibration.paragraphs import HELD_OUT_ONE_IN, Units, shares, units_for
from calibration.pydoc import check_library, pydoc_corpus
from calibration.python_code import code_documents, code_modules, code_source
from calibration.rows import TEXT_COLUMN
from calibration.splits import CALIBRATION, EVALUATION
from core.errors import DataError
from core.names import DATASETS, SELF
from core.sources import named_sources

C4_EVALUATION_DOCUMENTS = 1_100
PTB_VARIABLE = "PTB_DIR"
PTB_FILES = {CALIBRATION: "ptb.train.txt", EVALUATION: "ptb.test.txt"}


@dataclass(frozen=True)
class Text:
    """Documents in order, what stands between two of them, and one sentence on where they came from.

    own: text of the user's, of any size. size_bytes: about its length in UTF-8 where the file tells, else None.
    unseen: the documents once more, where what calibrates is left out of them; read, it knows how much that was.
    """

    documents: Iterable[str]
    separator: str
    source: str
    own: bool = False
    size_bytes: int | None = None
    unseen: Unseen | None = None


def check_dataset(name: str, text_column: str = TEXT_COLUMN) -> None:
    """Raise DataError for whatever is wrong with one text and can be known without a tokenizer.

    text_column: of the rows of a user's own files; the named datasets have theirs.
    """
    if name == SELF:
        return  # the model writes it
    if name == "pydoc":
        check_library()
    elif name == "pycode":
        code_modules()
    elif name == "ptb":
        for split in (CALIBRATION, EVALUATION):
            text_files.check_path(ptb_file(split))
    elif name in NAMED:
        hub_text.check_hub(name)
    else:
        text_files.check_path(existing_path(name), text_column)


def calibration_text(name: str, text_column: str = TEXT_COLUMN) -> Text:
    """Text that only calibration sees. Raises DataError, lazily where documents are streamed."""
    if name in NAMED:
        return NAMED[name](CALIBRATION)
    path = existing_path(name)
    units = _units(path, text_column)
    source = f"{units.value} of {name} outside the held-out {_fraction()}"
    if units is Units.TEXT:
        source = f"{name}, all of it, because it is too short or too uniform to hold a part out"
    return Text(_shares(path, text_column, CALIBRATION, units), "\n\n", source, own=True)


def evaluation_text(
    name: str,
    calibration_dataset: str | None,
    text_column: str = TEXT_COLUMN,
    calibration_chars: int | None = None,
) -> Text:
    """Text that calibration does not see, given the dataset that calibration used, one or a mixture (None: none was
    used). What the model writes itself is nobody's text, so nothing is compared with it.

    calibration_chars: how much of each text calibration reads at most; None where it reads none in this run, so that
    a dataset known by name is not fetched to be compared with.
    """
    used = [] if calibration_dataset is None else [n for n in named_sources(calibration_dataset) if n != SELF]
    paths = {other: existing_path(other) for other in used if other not in NAMED}
    if name in NAMED:
        text = NAMED[name](EVALUATION)
        if not paths:
            return text
    else:
        path = existing_path(name)
        read = text_files.files_of(path, text_column, EVALUATION)
        same = next((o for o, p in paths.items() if _share_a_file(read, p, text_column)), None)
        if same is None:
            documents = text_files.documents(path, text_column, EVALUATION)
            text = Text(documents, "\n\n", f"{name}, all of it", own=True, size_bytes=text_files.plain_bytes(read))
        else:
            text = _held_out(name, path, _units(paths[same], text_column), text_column)
            used.remove(same)
    comparisons = [_compared_with(other, text_column, calibration_chars) for other in used]
    compared = [comparison for comparison in comparisons if comparison is not None]
    if not compared:
        return text
    unseen = Unseen(text.documents, lambda: CalibrationText.together(comparison() for comparison in compared))
    return replace(text, documents=unseen, unseen=unseen)


def _share_a_file(read: list[Path], other: Path, text_column: str) -> bool:
    return text_files.share_a_file(read, text_files.files_of(other, text_column))


def _held_out(name: str, path: Path, units: Units, text_column: str) -> Text:
    if units is Units.TEXT:
        raise DataError(
            f"{name}: no part of it can be held out for evaluation, because it is one short passage or repeats the "
            "same few; evaluate on another text, e.g. --eval_datasets pydoc"
        )
    source = f"held-out {_fraction()} of the {units.value} of {name}, the rest being calibration text"
    size = text_files.plain_bytes(text_files.files_of(path, text_column, EVALUATION))
    documents = _shares(path, text_column, EVALUATION, units)
    return Text(documents, "\n\n", source, own=True, size_bytes=size and size // HELD_OUT_ONE_IN)


def _compared_with(dataset: str, text_column: str, max_chars: int | None) -> Callable[[], CalibrationText] | None:
    """What evaluation text is compared with; None where nothing is read, or only the hub has it (c4, streamed)."""
    if (dataset in NAMED and max_chars is None) or (dataset == "c4" and not hub_text.c4_is_cached()):
        return None
    if dataset in NAMED:
        return lambda: CalibrationText(NAMED[dataset](CALIBRATION).documents, max_chars=max_chars)
    path = existing_path(dataset)
    units = _units(path, text_column)
    return lambda: CalibrationText(text_files.documents(path, text_column), units, max_chars)


def _units(path: Path, text_column: str) -> Units:
    return units_for(lambda: text_files.documents(path, text_column))


def _shares(path: Path, text_column: str, side: str, units: Units) -> Iterator[str]:
    read = text_files.documents(path, text_column, side)
    return (part for document in read for part in shares(document, side == EVALUATION, units) if part)


def existing_path(name: str) -> Path:
    """The file or folder that a dataset's name is. DataError where it is none."""
    try:
        path = Path(name).expanduser()
        exists = bool(name.strip()) and path.exists()
    except RuntimeError:  # "~somebody" who has no home here
        exists = False
    except OSError as error:
        raise DataError(f"cannot read dataset {shortened(name)}: {error.strerror or error}") from error
    if not exists:
        known = ", ".join(sorted(DATASETS))
        raise DataError(f"dataset {shortened(name)} is neither one of {known} nor a file or folder that exists")
    return path


def shortened(name: str) -> str:
    return repr(name if len(name) <= 200 else f"{name[:200]}…")


def _fraction() -> str:
    return f"1/{HELD_OUT_ONE_IN}"


def _wikitext2(split: str) -> Text:
    part = hub_text.WIKITEXT_SPLITS[split]
    source = f"{part} split of {hub_text.WIKITEXT_ID}, {hub_text.WIKITEXT_CONFIG}"
    return Text(hub_text.wikitext_documents(split), "\n\n", source)


def _c4(split: str) -> Text:
    documents = hub_text.c4_documents(split)
    source = f"{hub_text.C4_FILES[split]} of {hub_text.C4_ID}"
    if split == CALIBRATION:
        return Text(documents, " ", source)
    return Text(
        islice(documents, C4_EVALUATION_DOCUMENTS),
        " ",
        f"first {C4_EVALUATION_DOCUMENTS:,} documents of {source}",
    )


def _ptb(split: str) -> Text:
    file = ptb_file(split)
    sentences = (line.strip() for text in text_files.documents(file) for line in text.splitlines())
    return Text(sentences, " ", str(file))


def ptb_file(split: str) -> Path:
    """Where a split of ptb lies. DataError where it does not."""
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


def _pycode(split: str) -> Text:
    return Text(code_documents(held_out=split == EVALUATION), "\n\n", f"{split} split of the {code_source()}")


NAMED: dict[str, Callable[[str], Text]] = {
    "c4": _c4,
    "ptb": _ptb,
    "pycode": _pycode,
    "pydoc": _pydoc,
    "wikitext2": _wikitext2,
}
