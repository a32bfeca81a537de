"""Windows that the dense model writes itself (``self``), from the cache of an earlier run or from the model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.self_text import (
    CALIBRATING,
    DISTILLING,
    EVALUATING,
    JUDGING,
    Beginnings,
    Request,
    answerable,
    beginnings,
    windows_of,
    written_together,
)
from calibration.splits import CALIBRATION, EVALUATION
from core.cache import Entry
from core.files import write_text
from core.names import SELF
from core.precision import bfloat16_pays, in_bfloat16
from core.say import note
from core.windows import TokenWindows
from models.loading import generation_config_of
from run.cache_keys import self_text_key
from run.windows import ELSEWHERE_TOKENS, ELSEWHERE_WINDOWS, TextWindows, wanted_windows

if TYPE_CHECKING:
    import torch

    from run.session import Session

SAMPLE = "calibration_sample.txt"
# Of a window to evaluate on. On a GPU each token takes as long as a pass, however many windows are written at once.
MOST_TOKENS = 256


def beginnings_of(session: "Session") -> Beginnings:
    """How texts of the session's model begin and end; a note where its chat template does not work."""
    generation = generation_config_of(session.source) if session.given is None else session.given.generation_config
    return beginnings(session.tokenizer, generation.eos_token_id, session.source.vocab_rows)


def chat_prompts(session: "Session") -> tuple[tuple[int, ...], ...]:
    """Instructions that calibrate nothing, in the model's chat template, as token ids; () where there is none."""
    return answerable(session.tokenizer, session.source.vocab_rows)


def with_written(session: "Session", read: TextWindows, judging: int) -> TextWindows:
    """The windows that were read and those that the dense model writes, where the settings ask for any. judging:
    windows to judge by that are needed for certain, in all."""
    text, asked = session.settings.calibration, session.settings.evaluation
    count, judges = wanted_windows(session.settings, judging).get(SELF, (0, 0))
    requests = []
    if count:
        requests.append(_request(session, count, text.seq_len, text.seed, CALIBRATING))
    if judges:
        requests.append(_request(session, judges, text.seq_len, text.seed, JUDGING))
    if SELF in asked.texts:
        assert asked.eval_seq_len is not None
        requests.append(_to_evaluate(session, asked.eval_seq_len, asked.eval_samples))
    found = TextWindows(dict(read.calibration), dict(read.judging), dict(read.evaluation))
    places = {CALIBRATING: found.calibration, JUDGING: found.judging, EVALUATING: found.evaluation}
    for request, windows in zip(requests, _written(session, requests), strict=True):
        places[request.purpose][SELF] = windows
    return found


def with_judging(session: "Session", found: TextWindows, judging: int) -> TextWindows:
    """The same with the model's share of so many windows to judge by, where it has not been written yet."""
    text = session.settings.calibration
    _, judges = wanted_windows(session.settings, judging).get(SELF, (0, 0))
    if not judges or SELF in found.judging:
        return found
    (windows,) = _written(session, [_request(session, judges, text.seq_len, text.seed, JUDGING)])
    return replace(found, judging=found.judging | {SELF: windows})


def written_to_distil(session: "Session", count: int) -> np.ndarray:
    """int64 (count, T): windows that the dense model writes for nothing else than a distillation."""
    text = session.settings.calibration
    request = _request(session, count, text.seq_len, text.seed, DISTILLING)
    return next(_written(session, [request])).ids


def _to_evaluate(session: "Session", seq_len: int, samples: int | None) -> Request:
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
    return _request(session, count, seq_len, 0, EVALUATING)


def _request(session: "Session", count: int, seq_len: int, seed: int, purpose: str) -> Request:
    return Request(beginnings_of(session).within(seq_len), count, seq_len, seed, purpose)


def _written(session: "Session", requests: Sequence[Request]) -> Iterator[TokenWindows]:
    """Of each request in turn, from the cache or from the model, which writes at once what is still to come where that
    saves time."""
    done: dict[Request, np.ndarray] = {}
    for number, request in enumerate(requests):
        if request not in done:
            at_once = [later for later in requests[number:] if later.begin == request.begin]
            at_once = at_once if all_at_once(session.device) else [request]
        halves = _writes_in_bfloat16(session)
        key = self_text_key(request.begin, request.count, request.seq_len, request.seed, request.purpose, halves)
        ids = session.cache.recall(f"text for {request.purpose}", key, partial(_entry, session, at_once, request, done))
        split = EVALUATION if request.purpose == EVALUATING else CALIBRATION
        yield windows_of(ids.arrays["ids"].astype(np.int64), split, request.seed)


def all_at_once(device: "torch.device") -> bool:
    """On a GPU a token takes as long for many rows as for few."""
    return device.type == "cuda"


def _entry(session: "Session", at_once: Sequence[Request], request: Request, done: dict[Request, np.ndarray]) -> Entry:
    """Of one of the requests; the others' rows are left in ``done``."""
    if request not in done:
        dense, size = session.dense(), session.batch_size
        stage = session.stages("text for " + " and ".join(written.purpose for written in at_once))
        with stage, in_bfloat16(dense, _writes_in_bfloat16(session)):
            done.update(zip(at_once, written_together(dense, at_once, size), strict=True))
    return Entry({"ids": done[request].astype(np.int32)}, {})


def _writes_in_bfloat16(session: "Session") -> bool:
    """Where the weights are stored so, and computed in float32 only because this is a CPU, which is slower at that."""
    return bfloat16_pays(session.dtype, session.architecture.hidden_size, session.device, session.saved_dtype)


def write_sample(path: Path, windows: TokenWindows, tokenizer: Any) -> Path:
    """The windows as text, for people: a line before each, special tokens as they are called."""
    texts = tokenizer.batch_decode(windows.ids, skip_special_tokens=False)
    return write_text(path, "".join(f"=== window {i} ===\n{text}\n\n" for i, text in enumerate(texts)))
