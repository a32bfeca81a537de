"""Paragraphs and the split by their hash: how one text serves calibration and evaluation and shares nothing."""

import hashlib

HELD_OUT_ONE_IN = 10
LONGEST_PARAGRAPH = 4_000  # characters; a file without blank lines (one sentence a line) would be one paragraph


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


def share(document: str, held_out: bool) -> str:
    """What one side of the split keeps of a document, in order, paragraphs parted by a blank line.

    A paragraph longer than LONGEST_PARAGRAPH is decided line by line, for the same text to be the same side wherever
    it stands. Empty where the side keeps nothing.
    """
    kept: list[str] = []
    for paragraph in paragraphs(document):
        units = [paragraph] if len(paragraph) <= LONGEST_PARAGRAPH else paragraph.split("\n")
        chosen = [unit for unit in units if is_held_out(unit) == held_out]
        if chosen:
            kept.append("\n".join(chosen))
    return "\n\n".join(kept)
