"""Passages: what a text is split into where its paragraphs are too long or too few to be split themselves."""

import re
import zlib
from collections.abc import Iterator

SHORTEST_PASSAGE = 200  # characters; it ends with the sentence, so that sentences of one thought stay together
LONGEST_PASSAGE = 1_000  # where no sentence ends, a passage ends between two words, or, without spaces, here
FRAGMENT_WORDS = 8
LONGEST_WORD = 100  # characters without a blank that stand together; a language without spaces is cut at this

_STOPS = "。！？｡।॥؟።။។"  # marks that end a sentence without a blank behind them
_CLOSING = "\"'”’)\\]」』）»"
_ENDS = re.compile(rf"[.!?…]+[{_CLOSING}]*(?=\s|$)|[{_STOPS}]+[{_CLOSING}]*")
_WORDS = re.compile(rf"\s*(?:[^\s{_STOPS}]{{1,{LONGEST_WORD}}}(?:[{_STOPS}]+[{_CLOSING}]*)?|[{_STOPS}]+[{_CLOSING}]*)")


def passages(text: str) -> Iterator[str]:
    """Runs of whole sentences of about SHORTEST_PASSAGE characters, in order; white space between them is dropped.

    They depend on the text from its first character on, and not on where its lines are broken.
    """
    start = length = 0
    for word in _WORDS.finditer(text):
        length += len(word.group().strip()) + 1
        if length >= LONGEST_PASSAGE or (length >= SHORTEST_PASSAGE and ends_a_sentence(word.group())):
            yield text[start : word.end()].strip()
            start, length = word.end(), 0
    if rest := text[start:].strip():
        yield rest


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text with single blanks, in order; their parts put together are the text again."""
    start = 0
    for end in _ENDS.finditer(text):
        yield text[start : end.end()]
        start = end.end()
    if start < len(text):
        yield text[start:]


def fragments(sentence: str) -> Iterator[str]:
    """A sentence that does not end, in runs of about FRAGMENT_WORDS words, in order.

    Words themselves say where a run ends, so two texts that share a run cut it alike, wherever it stands in them.
    """
    start = 0
    for word in _WORDS.finditer(sentence):
        if zlib.crc32(word.group().strip().encode("utf-8", "surrogatepass")) % FRAGMENT_WORDS == 0:
            yield sentence[start : word.end()]
            start = word.end()
    if start < len(sentence):
        yield sentence[start:]


def ends_a_sentence(word: str) -> bool:
    """Whether text ends with a mark that ends sentences, closing quotes and brackets aside."""
    return word.rstrip("\"'”’)]」』）» ").endswith((".", "!", "?", "…", *_STOPS))
