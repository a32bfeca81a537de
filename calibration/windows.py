"""Token windows for both stages: drawn at random for calibration, consecutive for evaluation, never padded.

Every window begins with the tokenizer's BOS token, where it has one, followed by consecutive text of the joined
documents; where it has none a window is text alone.
"""

from typing import TYPE_CHECKING

import numpy as np

from calibration.texts import CALIBRATION, EVALUATION, calibration_text, evaluation_text
from calibration.tokens import TokenStream, tokenise
from core.errors import DataError, UsageError
from core.windows import TokenWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL_CHARS = 16_000_000  # calibration draws from no more text than this (all of wikitext2), unless ...
POOL_CHARS_PER_TOKEN = 32  # ... so many tokens are asked for that a larger pool is due


def calibration_windows(
    name: str, tokenizer: "PreTrainedTokenizerBase", num_samples: int, seq_len: int, seed: int, *, after: int = 0
) -> TokenWindows:
    """``num_samples`` windows of ``seq_len`` tokens, drawn by seed from the dataset's calibration text.

    Positions come from a grid of random phase, so windows do not overlap; only where the text is too short for
    that they do, and ``source`` says so. Raises DataError where the text is shorter than one window.

    after: windows that a first call with this seed drew; these are the next ones, which share no token with them.
    Where the text is too short for both they are drawn by another seed, and ``source`` says that they may overlap.
    """
    text_len = _text_len(tokenizer, seq_len)
    if num_samples < 1:
        raise UsageError(f"--num_samples {num_samples} is below 1")
    text = calibration_text(name)
    limit = max(POOL_CHARS, POOL_CHARS_PER_TOKEN * (after or num_samples) * seq_len)
    stream = tokenise(text.documents, text.separator, tokenizer, max_chars=limit)
    _require_one_window(name, CALIBRATION, stream, text_len, seq_len)
    source = text.source if stream.complete else f"first {stream.chars:,} characters of the {text.source}"
    if after and len(stream) // text_len < after + num_samples:
        starts = _random_starts(len(stream), text_len, num_samples, seed + 1)
        source += f"; they may overlap the {after} windows drawn first, as the text has only {len(stream):,} tokens"
    else:
        starts = _random_starts(len(stream), text_len, after + num_samples, seed)[after:]
    if len(stream) // text_len < num_samples:
        source += f"; {num_samples} windows of {seq_len} overlap, as the text has only {len(stream):,} tokens"
    return TokenWindows(_windows(stream, starts, text_len, tokenizer), name, CALIBRATION, source)


def evaluation_windows(
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    seq_len: int,
    max_samples: int | None,
    calibration_dataset: str | None,
) -> TokenWindows:
    """Consecutive windows of ``seq_len`` tokens from the start of the dataset's evaluation text, a rest dropped.

    max_samples: at most so many windows (None: all). calibration_dataset: what calibration uses; a path that shares
    a file with it is evaluated on its held-out paragraphs only. Raises DataError where the text is shorter than one
    window. ``text_bytes`` counts the text behind the predicted tokens: all but a window's first token, which is BOS
    where there is one.
    """
    text_len = _text_len(tokenizer, seq_len)
    if max_samples is not None and max_samples < 1:
        raise UsageError(f"--eval_samples {max_samples} is below 1")
    text = evaluation_text(name, calibration_dataset)
    enough = None if max_samples is None else max_samples * text_len
    stream = tokenise(text.documents, text.separator, tokenizer, max_tokens=enough)
    _require_one_window(name, EVALUATION, stream, text_len, seq_len)
    count = len(stream) // text_len if max_samples is None else min(max_samples, len(stream) // text_len)
    starts = np.arange(count, dtype=np.int64) * text_len
    ids = _windows(stream, starts, text_len, tokenizer)
    return TokenWindows(ids, name, EVALUATION, text.source, _predicted_bytes(stream, starts, text_len, seq_len))


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
    remedy = f"lower {option} to {longest} or less, or give more text" if longest >= 2 else "give more text"
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
