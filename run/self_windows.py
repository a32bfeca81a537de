"""Windows that the dense model writes itself (``self``), from the cache of an earlier run or from the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.self_text import (
    CALIBRATING,
    DISTILLING,
    EVALUATING,
    JUDGING,
    Beginnings,
    answerable,
    beginnings,
    windows_of,
    written_windows,
)
from calibration.splits import CALIBRATION, EVALUATION
from core.cache import Entry
from core.files import write_text
from core.names import SELF
from core.say import note
from core.windows import TokenWindows
from models.loading import generation_config_of
from run.cache_keys import self_text_key
from run.windows import ELSEWHERE_TOKENS, ELSEWHERE_WINDOWS, TextWindows, wanted_windows

if TYPE_CHECKING:
    from run.session import Session

SAMPLE = "calibration_sample.txt"
# Of a window to evaluate on. On a GPU each token takes as long as a pass, however many windows are written at once.
MOST_TOKENS = 512


def beginnings_of(session: "Session") -> Beginnings:
    """How texts of the session's model begin and end; a note where its chat template does not work."""
    generation = generation_config_of(session.source) if session.given is None else session.given.generation_config
    return beginnings(session.tokenizer, generation.eos_token_id, session.source.vocab_rows)


def chat_prompts(session: "Session") -> tuple[tuple[int, ...], ...]:
    """Instructions that calibrate nothing, in the model's chat template, as token ids; () where there is none."""
    return answerable(session.tokenizer, session.source.vocab_rows)


def with_written(session: "Session", read: TextWindows, judging: int) -> TextWindows:
    """The windows that were read and those that the dense model writes, where the settings ask for any."""
    text, asked = session.settings.calibration, session.settings.evaluation
    count, judges = wanted_windows(session.settings, judging).get(SELF, (0, 0))
    found = TextWindows(dict(read.calibration), dict(read.judging), dict(read.evaluation))
    if count:
        found.calibration[SELF] = _written(session, count, text.seq_len, text.seed, CALIBRATING)
    if judges:
        found.judging[SELF] = _written(session, judges, text.seq_len, text.seed, JUDGING)
    if SELF in asked.texts:
        assert asked.eval_seq_len is not None
        found.evaluation[SELF] = _evaluated(session, asked.eval_seq_len, asked.eval_samples)
    return found


def written_to_distil(session: "Session", count: int) -> np.ndarray:
    """int64 (count, T): windows that the dense model writes for nothing else than a distillation."""
    text = session.settings.calibration
    return _written(session, count, text.seq_len, text.seed, DISTILLING).ids


def _evaluated(session: "Session", seq_len: int, samples: int | None) -> TokenWindows:
    """Evaluation windows, which are no matter of the seed; as few as of a text of another kind, and of MOST_TOKENS
    each at most."""
    asked, seq_len = seq_len, min(seq_len, MOST_TOKENS)
    count = samples or max(ELSEWHERE_WINDOWS, ELSEWHERE_TOKENS // seq_len)
    if samples is None:
        note(
            f"{SELF}: evaluation reads {count:,} windows of {seq_len} tokens that the dense model writes; use "
            "--eval_samples N for another number"
        )
    elif seq_len < asked:
        note(
            f"{SELF}: evaluation reads windows of {seq_len} tokens, not {asked:,}, as each is written a token at a time"
        )
    return _written(session, count, seq_len, 0, EVALUATING)


def _written(session: "Session", count: int, seq_len: int, seed: int, purpose: str) -> TokenWindows:
    begin = beginnings_of(session).within(seq_len)

    def write() -> Entry:
        dense, size = session.dense(), session.batch_size
        with session.stages(f"text for {purpose}"):
            ids = written_windows(dense, begin, count, seq_len, seed, purpose, size)
        return Entry({"ids": ids.astype(np.int32)}, {})

    key = self_text_key(begin, count, seq_len, seed, purpose)
    ids = session.cache.recall(f"text for {purpose}", key, write).arrays["ids"].astype(np.int64)
    return windows_of(ids, EVALUATION if purpose == EVALUATING else CALIBRATION, seed)


def write_sample(path: Path, windows: TokenWindows, tokenizer: Any) -> Path:
    """The windows as text, for people: a line before each, special tokens as they are called."""
    texts = tokenizer.batch_decode(windows.ids, skip_special_tokens=False)
    return write_text(path, "".join(f"=== window {i} ===\n{text}\n\n" for i, text in enumerate(texts)))
