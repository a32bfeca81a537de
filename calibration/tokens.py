"""From documents to one stream of tokens, piece by piece, with the byte of text at which each token starts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.progress import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE_CHARS = 100_000  # tokenised at a time: bounds memory and lets a reader stop early
PROGRESS_DELAY_S = 2.0


@dataclass(frozen=True)
class TokenStream:
    """Tokens of consecutive text, special tokens left out.

    ids: int64 (tokens,). byte_starts: int64 (tokens + 1,), UTF-8 offset of each token in the text, last the length of
    the text; None where the tokenizer does not tell offsets. chars: characters of text behind the ids.
    complete: False where reading stopped at a limit.
    """

    ids: np.ndarray
    byte_starts: np.ndarray | None
    chars: int
    complete: bool

    def __len__(self) -> int:
        return len(self.ids)


def tokenise(
    documents: Iterable[str],
    separator: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int | None = None,
    max_chars: int | None = None,
) -> TokenStream:
    """Token ids of the joined documents; reading stops once max_tokens or max_chars are there (None: never).

    Pieces of PIECE_CHARS are tokenised one by one, cut where a line or word begins, so a token may differ from
    that of the undivided text at a cut, one place in 100,000 characters.
    """
    ids: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    chars = bytes_before = tokens = 0
    complete = True
    with tqdm(desc="tokenising", unit="char", unit_scale=True, delay=PROGRESS_DELAY_S, leave=False) as bar:
        for piece in _pieces(documents, separator):
            if (max_tokens is not None and tokens >= max_tokens) or (max_chars is not None and chars >= max_chars):
                complete = False
                break
            piece_ids, piece_starts, piece_bytes = _tokenise_piece(piece, tokenizer)
            ids.append(piece_ids)
            starts.append(piece_starts + bytes_before)
            tokens, chars, bytes_before = (
                tokens + len(piece_ids),
                chars + len(piece),
                bytes_before + piece_bytes,
            )
            bar.update(len(piece))
    empty = np.empty(0, dtype=np.int64)
    byte_starts = np.concatenate([empty, *starts, np.array([bytes_before])]) if tokenizer.is_fast else None
    return TokenStream(np.concatenate([empty, *ids]), byte_starts, chars, complete)


def _tokenise_piece(piece: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[np.ndarray, np.ndarray, int]:
    """ids int64 (n,), byte offset of each inside the piece int64 (n,) (zeros without offsets), bytes of the piece."""
    encoded = tokenizer(
        piece,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=tokenizer.is_fast,
        verbose=False,  # otherwise a warning that the text is longer than the model's context
    )
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    code_points = np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    byte_of_char = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(widths)])
    if not tokenizer.is_fast:
        return ids, np.zeros(len(ids), dtype=np.int64), int(byte_of_char[-1])
    char_starts = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]
    return ids, byte_of_char[char_starts], int(byte_of_char[-1])


def _pieces(documents: Iterable[str], separator: str) -> Iterator[str]:
    """The joined documents in pieces of at most PIECE_CHARS characters; joined again they are the whole text."""
    buffer = ""
    first = True
    for document in documents:
        buffer += document if first else separator + document
        first = False
        position = 0
        while len(buffer) - position > PIECE_CHARS:
            end = _cut(buffer, position)
            yield buffer[position:end]
            position = end
        buffer = buffer[position:]
    if buffer:
        yield buffer


def _cut(text: str, start: int) -> int:
    """Where to cut at most PIECE_CHARS after start: before a line, else before a word, else anywhere."""
    middle, end = start + PIECE_CHARS // 2, start + PIECE_CHARS
    for mark in ("\n", " "):
        found = text.rfind(mark, middle, end)
        if found > start:
            return found
    return end
