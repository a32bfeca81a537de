"""Paragraphs and the split by their hash: how one text serves calibration and evaluation and shares nothing."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import islice

from calibration.passages import passages

HELD_OUT_ONE_IN = 10
LONGEST_PARAGRAPH = 4_000  # characters; a file without blank lines (one sentence a line) would be one paragraph
PASSAGES_AT_ONCE = 1_000
LEAST_SHARE = 0.01  # of a text that either side of the split must get; a tenth and nine tenths are meant
JUDGED_CHARS = 16_000_000  # of a text; its beginning tells how it can be split


class Units(Enum):
    """What is on one side or the other as a whole. ``value`` is the word for it.

    PARAGRAPHS: those of the text, or the lines of a long one. PASSAGES: a few sentences each, where paragraphs would
    leave a side all but empty (a book on one line). TEXT: the text itself, where even passages do (one that is too
    short, or repeats itself): all of it calibrates and nothing is held out.
    """

    PARAGRAPHS = "paragraphs"
    PASSAGES = "passages"
    TEXT = "text"


def paragraphs(text: str) -> list[str]:
    """Paragraphs in order: runs of lines that are not blank, indentation kept, trailing blanks removed."""
    found: list[str] = []
    current: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            current.append(line.rstrip())
        elif current:
            found.append("\n".join(current))
            current = []
    return found


def normalised(paragraph: str) -> str:
    """The paragraph with every run of white space as one blank: what makes two paragraphs the same."""
    return " ".join(paragraph.split())


def is_held_out(paragraph: str) -> bool:
    """True for about 1 paragraph in 10, by SHA-256 of the normalised text: the evaluation side."""
    digest = hashlib.sha256(normalised(paragraph).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def share(document: str, held_out: bool, units: Units = Units.PARAGRAPHS) -> str:
    """What one side of the split keeps of a document, in order, paragraphs parted by a blank line.

    A paragraph longer than LONGEST_PARAGRAPH is decided line by line, for the same text to be the same side wherever
    it stands. Empty where the side keeps nothing.
    """
    if units is Units.TEXT:
        return "" if held_out else document
    kept: list[str] = []
    for paragraph in paragraphs(document):
        chosen = [unit for unit in units_of(paragraph, units) if is_held_out(unit) == held_out]
        if chosen:
            kept.append("\n".join(chosen))
    return "\n\n".join(kept)


def shares(document: str, held_out: bool, units: Units) -> Iterator[str]:
    """``share``, in parts where the document is cut into passages: it may be a book on one line, or a hundred."""
    if units is not Units.PASSAGES:
        yield share(document, held_out, units)
        return
    for paragraph in paragraphs(document):
        chosen = (passage for passage in passages(paragraph) if is_held_out(passage) == held_out)
        while part := list(islice(chosen, PASSAGES_AT_ONCE)):
            yield "\n".join(part)


def units_of(paragraph: str, units: Units) -> Iterable[str]:
    """What of a paragraph is decided on as a whole, in order."""
    if units is Units.PASSAGES:
        return passages(paragraph)
    return [paragraph] if len(paragraph) <= LONGEST_PARAGRAPH else paragraph.split("\n")


def units_for(documents: Callable[[], Iterable[str]]) -> Units:
    """The coarsest units under which both sides get LEAST_SHARE of the text, judged by its first JUDGED_CHARS.

    It depends on the text alone, so whoever reads it splits it alike. documents: called once or twice.
    """
    choices = (Units.PARAGRAPHS, Units.PASSAGES)
    return next((units for units in choices if _serves_both(documents(), units)), Units.TEXT)


def _serves_both(documents: Iterable[str], units: Units) -> bool:
    characters = [0, 0]  # of the units that calibrate, of those held out
    read = 0
    for document in documents:
        for paragraph in paragraphs(document):
            for unit in units_of(paragraph[:JUDGED_CHARS], units):
                characters[is_held_out(unit)] += len(unit)
        read += len(document)
        if read >= JUDGED_CHARS or min(characters) >= LEAST_SHARE * JUDGED_CHARS:
            break
    return min(characters) > LEAST_SHARE * sum(characters)
