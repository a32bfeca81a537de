"""Evaluation text without what calibrates: the same paragraphs in another file, format, compression or line length.

Two texts are compared by paragraphs, lines and sentences, white space normalised. Short ones (a heading, "See also.")
recur in any two texts and prove nothing: they count only where much of the text is shared.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from calibration.paragraphs import Units, is_held_out, normalised, paragraphs, units_of
from calibration.passages import ends_a_sentence, fragments, sentences

TELLING_BYTES = 40  # UTF-8 length from which a sentence or paragraph is told apart by what it says
LONG_SENTENCE = 400  # characters; beyond them a sentence is compared in fragments as well
SAME_TEXT_SHARE = 0.1  # of the text's beginning that is shared: from here on short paragraphs count too
BEGINNING_CHARS = 1_000_000


class CalibrationText:
    """Hashes of all paragraphs, lines and sentences that calibrate, 8 bytes each."""

    def __init__(self, documents: Iterable[str], units: Units | None = None, max_chars: int | None = None) -> None:
        """units: how the documents are split (None: all of them calibrates). max_chars: of calibration text, that
        is read at most."""
        hashes: list[np.ndarray] = []
        read = 0
        for document in documents:
            found = [list(_calibrating(paragraph, units)) for paragraph in paragraphs(document)]
            texts = [text for one in found for text in one]
            hashes.append(np.fromiter(map(_hash, texts), dtype=np.uint64, count=len(texts)))
            read += sum(len(one[0]) for one in found if one)  # less than calibrates where a paragraph is divided
            if max_chars is not None and read >= max_chars:
                break
        self.hashes = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes]))

    @classmethod
    def together(cls, texts: "Iterable[CalibrationText]") -> "CalibrationText":
        """What any of them holds."""
        whole = cls(())
        whole.hashes = np.unique(np.concatenate([whole.hashes, *(text.hashes for text in texts)]))
        return whole

    def holds(self, texts: list[str], least_bytes: int = TELLING_BYTES) -> np.ndarray:
        """bool (N,): which of N normalised texts calibrate; none that is shorter than least_bytes does."""
        wanted = np.fromiter(map(_hash, texts), dtype=np.uint64, count=len(texts))
        long = np.array([_bytes(text) >= least_bytes for text in texts], dtype=bool)
        if not len(self.hashes):
            return np.zeros(len(texts), dtype=bool)
        places = np.searchsorted(self.hashes, wanted).clip(max=len(self.hashes) - 1)
        return np.asarray(long & (self.hashes[places] == wanted))


class Unseen:
    """Documents without what calibrates; iterating them counts what was left out.

    read_chars, dropped_chars: characters looked at and left out so far.
    """

    def __init__(self, documents: Iterable[str], calibration: Callable[[], CalibrationText]) -> None:
        """calibration: called when the first document is asked for."""
        self._documents, self._calibration = documents, calibration
        self.read_chars = self.dropped_chars = 0

    def __iter__(self) -> Iterator[str]:
        self.read_chars = self.dropped_chars = 0
        calibration, documents = self._calibration(), iter(self._documents)
        beginning = list(_beginning(documents))
        shared = sum(len(text) - len(without(text, calibration, 0)) for text in beginning)
        least_bytes = 0 if shared >= SAME_TEXT_SHARE * sum(map(len, beginning)) else TELLING_BYTES
        for document in itertools.chain(beginning, documents):
            kept = without(document, calibration, least_bytes)
            self.read_chars += len(document)
            self.dropped_chars += len(document) - len(kept)
            if kept or not document:
                yield kept

    def describe(self, source: str) -> str:
        """``source``, a sentence on where the documents come from, with the share of them that was left out."""
        if not self.dropped_chars:
            return source
        percent = 100 * self.dropped_chars / self.read_chars
        share = "less than 1%" if percent < 1 else f"{int(percent)}%"
        return f"{source.removesuffix(', all of it')}, without the {share} of it that is calibration text"


def without(document: str, calibration: CalibrationText, least_bytes: int) -> str:
    """The document as it is where nothing of it calibrates; else its other paragraphs, or what is left of one.

    least_bytes: of UTF-8 in a paragraph or line that counts.
    """
    found = paragraphs(document)
    kept = [_rest(paragraph, calibration, least_bytes) for paragraph in found]
    return document if kept == found else "\n\n".join(filter(None, kept))


def _rest(paragraph: str, calibration: CalibrationText, least_bytes: int) -> str:
    """The paragraph without the lines and sentences that calibrate."""
    if calibration.holds([normalised(paragraph)], least_bytes)[0]:
        return ""
    lines = paragraph.split("\n")
    rest = "\n".join(_others(lines, calibration.holds([normalised(line) for line in lines], least_bytes)))
    parts = [part for sentence in sentences(normalised(rest)) for part in _parts(sentence, calibration)]
    known = calibration.holds([part.strip() for part in parts])
    return "".join(_others(parts, known)).strip() if known.any() else rest


def _parts(sentence: str, calibration: CalibrationText) -> list[str]:
    """The sentence, in fragments where it is long and not itself a sentence that calibrates."""
    if len(sentence) <= LONG_SENTENCE or calibration.holds([sentence.strip()])[0]:
        return [sentence]
    return list(fragments(sentence))


def _others(texts: list[str], known: np.ndarray) -> Iterator[str]:
    return (text for text, calibrates in zip(texts, known, strict=True) if not calibrates)


def _calibrating(paragraph: str, units: Units | None) -> Iterator[str]:
    """All by which this paragraph is known where it calibrates: itself, its units, sentences and their fragments."""
    whole = normalised(paragraph)
    parts = [paragraph] if units in (None, Units.TEXT) else list(units_of(paragraph, units))
    calibrates = [units in (None, Units.TEXT) or not is_held_out(part) for part in parts]
    if not any(calibrates):
        return
    if all(calibrates):
        yield whole
        if whole != paragraph:
            yield from map(normalised, paragraph.split("\n"))
    if len(parts) > 1:
        yield from (normalised(part) for part, chosen in zip(parts, calibrates, strict=True) if chosen)
    marked = _marked(whole, parts, calibrates)
    place = 0
    for sentence in sentences(whole):
        if marked[place : place + len(sentence)].any():
            yield sentence.strip()
            if len(sentence) > LONG_SENTENCE // 2 or not ends_a_sentence(sentence):
                yield from _marked_fragments(sentence, marked[place : place + len(sentence)])
        place += len(sentence)


def _marked(whole: str, parts: list[str], calibrates: list[bool]) -> np.ndarray:
    """bool (characters of whole,): where a part stands that calibrates."""
    marked = np.zeros(len(whole), dtype=bool)
    place = 0
    for part, chosen in zip(parts, calibrates, strict=True):
        text = normalised(part)
        place = max(place, whole.find(text, place))
        marked[place : place + len(text)] = chosen
        place += len(text)
    return marked


def _marked_fragments(sentence: str, marked: np.ndarray) -> Iterator[str]:
    if marked.all():
        yield from (fragment.strip() for fragment in fragments(sentence))
        return
    place = 0
    for fragment in fragments(sentence):
        if marked[place : place + len(fragment)].any():
            yield fragment.strip()
        place += len(fragment)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _beginning(documents: Iterator[str]) -> Iterator[str]:
    read = 0
    for document in documents:
        yield document
        read += len(document)
        if read >= BEGINNING_CHARS:
            return
