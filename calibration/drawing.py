"""Token windows for both stages: drawn at random for calibration, consecutive for evaluation, never padded.

Every window begins with the tokenizer's BOS token, where it has one, followed by consecutive text of the joined
documents; where it has none a window is text alone.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calibration.rows import TEXT_COLUMN
from calibration.texts import CALIBRATION, EVALUATION, Text, calibration_text, evaluation_text
from calibration.tokens import PIECE_CHARS, TokenStream, tokenise
from core.errors import DataError, UsageError
from core.say import note
from core.windows import TokenWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL_CHARS = 16_000_000  # calibration draws from no more text than this (all of wikitext2), unless ...
POOL_CHARS_PER_TOKEN = 32  # ... so many tokens are asked for that a larger pool is due
EVALUATION_TOKENS = 2**20  # of a user's own text, unless told otherwise: three times what wikitext2 is judged on


def calibration_windows(
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    num_samples: int,
    seq_len: int,
    seed: int,
    *,
    after: int = 0,
    text_column: str = TEXT_COLUMN,
    vocab_rows: int | None = None,
) -> TokenWindows:
    """``num_samples`` windows of ``seq_len`` tokens, drawn by seed from the dataset's calibration text.

    Positions come from a grid of random phase, so windows do not overlap; only where the text is too short for
    that they do, and ``source`` says so. Raises DataError where the text is shorter than one window.

    after: windows that a first call with this seed drew; these are the next ones, which share no token with them.
    Where the text is too short for both they are drawn by another seed, and ``source`` says that they may overlap.
    text_column: of the rows of a user's own files. vocab_rows: of the model's embedding; a window with an id that is
    not one of them raises DataError (None: not checked).
    """
    pool = _calibration_pool(name, tokenizer, after or num_samples, seq_len, text_column)
    return _drawn(pool, num_samples, seed, after, vocab_rows)


def draw_windows(
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    num_samples: int,
    judging: int,
    seq_len: int,
    seed: int,
    *,
    text_column: str = TEXT_COLUMN,
    vocab_rows: int | None = None,
) -> tuple[TokenWindows, TokenWindows | None]:
    """Calibration windows and ``judging`` further ones (None for 0), from one reading of the text: those that
    ``calibration_windows`` gives at first, and after them."""
    pool = _calibration_pool(name, tokenizer, num_samples, seq_len, text_column)
    calibration = _drawn(pool, num_samples, seed, 0, vocab_rows)
    return calibration, _drawn(pool, judging, seed, num_samples, vocab_rows) if judging else None


def training_windows(
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    most: int,
    held_out: int,
    seq_len: int,
    seed: int,
    *,
    text_column: str = TEXT_COLUMN,
    vocab_rows: int | None = None,
) -> tuple[TokenWindows, TokenWindows]:
    """Up to ``most`` windows of calibration text to train on, and ``held_out`` to judge that by: no two share a token.

    Of a text that has fewer a quarter, at most, is held out. Raises DataError where it has not even two.
    """
    pool = _calibration_pool(name, tokenizer, most + held_out, seq_len, text_column)
    there = len(pool.stream) // pool.text_len
    if there < 2:
        raise DataError(
            f"{name}: training needs two windows of {seq_len} tokens, one of them to judge by, and the text has "
            f"{len(pool.stream):,} tokens: lower --seq_len, or give more text"
        )
    aside = min(held_out, max(1, there // 4))
    count = min(most, there - aside)
    return _drawn(pool, count, seed, 0, vocab_rows), _drawn(pool, aside, seed, count, vocab_rows)


class _Pool(NamedTuple):
    """Tokenised calibration text and how windows are cut from it."""

    name: str
    stream: TokenStream
    source: str
    tokenizer: "PreTrainedTokenizerBase"
    seq_len: int
    text_len: int


def _calibration_pool(
    name: str, tokenizer: "PreTrainedTokenizerBase", num_samples: int, seq_len: int, text_column: str
) -> _Pool:
    text_len = _text_len(tokenizer, seq_len)
    if num_samples < 1:
        raise UsageError(f"--num_samples {num_samples} is below 1")
    text = calibration_text(name, text_column)
    stream = tokenise(text.documents, text.separator, tokenizer, max_chars=_pool_chars(num_samples * seq_len))
    _require_one_window(name, CALIBRATION, stream, text_len, seq_len)
    source = text.source if stream.complete else f"first {stream.chars:,} characters of the {text.source}"
    return _Pool(name, stream, source, tokenizer, seq_len, text_len)


def _drawn(pool: _Pool, num_samples: int, seed: int, after: int, vocab_rows: int | None) -> TokenWindows:
    """``num_samples`` windows behind the first ``after`` of this seed."""
    tokens, text_len, source = len(pool.stream), pool.text_len, pool.source
    if after and tokens // text_len < after + num_samples:
        starts = _random_starts(tokens, text_len, num_samples, seed + 1)
        source += f"; they may overlap the {after} windows drawn first, as the text has only {tokens:,} tokens"
    else:
        starts = _random_starts(tokens, text_len, after + num_samples, seed)[after:]
    if tokens // text_len < num_samples:
        source += f"; {num_samples} windows of {pool.seq_len} overlap, as the text has only {tokens:,} tokens"
    ids = _windows(pool.stream, starts, text_len, pool.tokenizer)
    _require_rows(pool.name, CALIBRATION, ids, pool.tokenizer, vocab_rows)
    return TokenWindows(ids, pool.name, CALIBRATION, source)


def evaluation_windows(
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    seq_len: int,
    max_samples: int | None,
    calibration_dataset: str | None,
    *,
    text_column: str = TEXT_COLUMN,
    vocab_rows: int | None = None,
    calibration_tokens: int | None = None,
    spread: int | None = None,
) -> TokenWindows:
    """Consecutive windows of ``seq_len`` tokens from the start of the dataset's evaluation text, a rest dropped.

    max_samples: at most so many windows (None: all; of a user's own text EVALUATION_TOKENS, which a note says). spread:
    so many of these, evenly spaced (None: all).
    calibration_dataset: what calibration uses; a path that shares a file with it is evaluated on its held-out
    paragraphs only, any other text on what does not calibrate. calibration_tokens: how many calibration reads in this
    run (None: none). text_column, vocab_rows: as for calibration. Raises DataError where the text is shorter than one
    window. ``text_bytes`` counts the text behind the predicted tokens: all but a window's first token, which is BOS
    where there is one.
    """
    text_len = _text_len(tokenizer, seq_len)
    if max_samples is not None and max_samples < 1:
        raise UsageError(f"--eval_samples {max_samples} is below 1")
    chars = None if calibration_tokens is None else _pool_chars(calibration_tokens) + PIECE_CHARS
    text = evaluation_text(name, calibration_dataset, text_column, chars)
    most = max(1, EVALUATION_TOKENS // seq_len) if max_samples is None and text.own else max_samples
    enough = None if most is None else most * text_len
    stream = tokenise(text.documents, text.separator, tokenizer, max_tokens=enough)
    source = text.source if text.unseen is None else text.unseen.describe(text.source)
    _require_unseen(name, text, stream, calibration_dataset)
    _require_one_window(name, EVALUATION, stream, text_len, seq_len)
    whole = len(stream) // text_len
    count = whole if most is None else min(most, whole)
    if max_samples is None and (count < whole or not stream.complete):
        source = f"first {count:,} windows of the {source}"
        if spread is None:
            _say_what_is_not_read(name, text, stream, count, seq_len, text_len)
    starts = np.arange(count, dtype=np.int64) * text_len
    if spread is not None and spread < count:
        starts = starts[np.arange(spread) * count // spread]
        source = f"{spread:,} windows, evenly spaced, of the {source}"
    ids = _windows(stream, starts, text_len, tokenizer)
    _require_rows(name, EVALUATION, ids, tokenizer, vocab_rows)
    return TokenWindows(ids, name, EVALUATION, source, _predicted_bytes(stream, starts, text_len, seq_len))


def _pool_chars(tokens: int) -> int:
    """Characters that calibration reads at most for so many tokens."""
    return max(POOL_CHARS, POOL_CHARS_PER_TOKEN * tokens)


def _say_what_is_not_read(name: str, text: Text, stream: TokenStream, count: int, seq_len: int, text_len: int) -> None:
    """How many windows of how many; of a text that was not read to its end, by the size of its file."""
    total = f"{len(stream) // text_len:,}"
    if not stream.complete:
        read = stream.chars if stream.byte_starts is None else int(stream.byte_starts[-1])
        windows = (text.size_bytes or 0) * len(stream) // (read * text_len)
        total = f"about {windows:,}" if windows > count else "more"
    note(
        f"{name}: evaluation reads the first {count:,} of {total} windows of {seq_len} tokens; use --eval_samples N "
        "for another number"
    )


def _require_unseen(name: str, text: Text, stream: TokenStream, calibration_dataset: str | None) -> None:
    if text.unseen is not None and text.unseen.dropped_chars and not len(stream):
        raise DataError(
            f"{name}: all of it is calibration text ({calibration_dataset}), so nothing is left to evaluate on; give "
            "--eval_datasets another text, or leave it out to evaluate on what is held out of the calibration text"
        )


def _require_rows(
    name: str, split: str, ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase", vocab_rows: int | None
) -> None:
    """Raise DataError where a token has no row in the embedding: the tokenizer grew and the model did not."""
    if vocab_rows is None or not (beyond := ids[ids >= vocab_rows]).size:
        return
    number = int(beyond[0])
    token = tokenizer.convert_ids_to_tokens(number)
    raise DataError(
        f"{name}: the {split} text holds the token {token!r} with id {number}, but the model's embedding has "
        f"{vocab_rows:,} rows: use the tokenizer that the model was trained with, or add rows first "
        "(model.resize_token_embeddings(len(tokenizer)))"
    )


def _text_len(tokenizer: "PreTrainedTokenizerBase", seq_len: int) -> int:
    """Tokens of text in a window: BOS takes one place."""
    if seq_len < 2:
        raise UsageError(f"a window of {seq_len} tokens predicts nothing: at least 2 are needed")
    return seq_len if tokenizer.bos_token_id is None else seq_len - 1


def _require_one_window(name: str, split: str, stream: TokenStream, text_len: int, seq_len: int) -> None:
    if len(stream) >= text_len:
        return
    option = "--seq_len" if split == CALIBRATION else "--eval_seq_len"
    longest = len(stream) + seq_len - text_len
    more = "give more text" if split == CALIBRATION else "give more text, or another with --eval_datasets"
    remedy = f"lower {option} to {longest} or less, or {more}" if longest >= 2 else more
    raise DataError(
        f"{name}: {len(stream):,} tokens of {split} text, but one window of {seq_len} needs {text_len:,}: {remedy}"
    )


def _random_starts(tokens: int, text_len: int, num_samples: int, seed: int) -> np.ndarray:
    """int64 (num_samples,): multiples of text_len after a random phase; any position where these are too few."""
    rng = np.random.default_rng(seed)
    count = tokens // text_len
    if count < num_samples:
        possible = tokens - text_len + 1
        return rng.choice(possible, num_samples, replace=possible < num_samples).astype(np.int64)
    phase = int(rng.integers(tokens - count * text_len + 1))
    return phase + rng.permutation(count)[:num_samples].astype(np.int64) * text_len


def _windows(
    stream: TokenStream, starts: np.ndarray, text_len: int, tokenizer: "PreTrainedTokenizerBase"
) -> np.ndarray:
    """int64 (N, T)."""
    ids = stream.ids[starts[:, None] + np.arange(text_len)]
    if tokenizer.bos_token_id is None:
        return ids
    return np.insert(ids, 0, tokenizer.bos_token_id, axis=1)


def _predicted_bytes(stream: TokenStream, starts: np.ndarray, text_len: int, seq_len: int) -> int | None:
    """UTF-8 bytes from the first predicted token of each window to the token after its last."""
    if stream.byte_starts is None:
        return None
    first = starts + (text_len == seq_len)  # without BOS the first token of text is not predicted
    return int((stream.byte_starts[starts + text_len] - stream.byte_starts[first]).sum())
