"""The windows of a run: drawn from its texts, or those that an earlier run drew from the same texts."""

from dataclasses import dataclass, field
from typing import Any

from calibration import draw_windows, evaluation_windows
from calibration.states import text_state
from core.cache import Entry
from core.say import heard_notes, note
from core.windows import TokenWindows
from models.loading import ModelSource
from run.cache_keys import windows_key
from run.measurement_cache import MeasurementCache
from run.settings import Settings


@dataclass(frozen=True)
class Windows:
    """calibration: windows to measure and refit on, None where nothing does. judging: windows that importance did not
    see, for plans on trial, None where none is tried. evaluation: by dataset."""

    calibration: TokenWindows | None = None
    judging: TokenWindows | None = None
    evaluation: dict[str, TokenWindows] = field(default_factory=dict)


def read_windows(settings: Settings, source: ModelSource, judging: int, cache: MeasurementCache) -> Windows:
    """Calibration, ``judging`` and evaluation windows, each where the settings need it. DataError.

    They come from the cache where texts, tokenizer and everything asked are as they were; text that only the hub has
    is read anew.
    """
    key = None if cache.folder is None else _key(settings, source, judging)
    if key is None:
        return _drawn(settings, source, judging)
    return _from(cache.recall("windows", key, lambda: _entry(settings, source, judging), measured=False))


def _drawn(settings: Settings, source: ModelSource, judging: int) -> Windows:
    """From one reading of each text."""
    text, asked = settings.calibration, settings.evaluation
    reading: dict[str, Any] = {"text_column": text.text_column, "vocab_rows": source.vocab_rows}
    calibration = after = None
    if settings.reads_calibration:
        calibration, after = draw_windows(
            text.dataset, source.tokenizer, text.num_samples, judging, text.seq_len, text.seed, **reading
        )
    # --dataset is named even where nothing calibrates on it, so that replays are judged on the same text.
    assert asked.eval_seq_len is not None
    calibrates = text.num_samples * text.seq_len if settings.reads_calibration else None
    evaluation = {
        name: evaluation_windows(
            name,
            source.tokenizer,
            asked.eval_seq_len,
            asked.eval_samples,
            text.dataset,
            calibration_tokens=calibrates,
            **reading,
        )
        for name in asked.texts
    }
    return Windows(calibration, after, evaluation)


def _key(settings: Settings, source: ModelSource, judging: int) -> dict[str, Any] | None:
    """Everything the windows depend on; None where that cannot be told without reading them."""
    text, asked = settings.calibration, settings.evaluation
    calibrates = (text.num_samples, text.seq_len, text.seed, judging) if settings.reads_calibration else None
    evaluates = (asked.eval_seq_len, asked.eval_samples, list(asked.texts))
    names = dict.fromkeys([text.dataset, *asked.texts])
    try:
        texts = {name: text_state(name, text.text_column) for name in names}
        key = windows_key(source, calibration=calibrates, evaluation=evaluates, texts=texts)
    except OSError:
        return None
    return None if None in texts.values() else key


def _entry(settings: Settings, source: ModelSource, judging: int) -> Entry:
    """Token ids int64 (N, T) by name, and what else is known of them; notes that were said on the way."""
    with heard_notes() as notes:
        drawn = _drawn(settings, source, judging)
    found = [("calibration", drawn.calibration), ("judging", drawn.judging)]
    found += [(f"evaluation {name}", windows) for name, windows in drawn.evaluation.items()]
    arrays = {name: windows.ids for name, windows in found if windows is not None}
    about = {
        name: {part: getattr(windows, part) for part in ("dataset", "split", "source", "text_bytes")}
        for name, windows in found
        if windows is not None
    }
    return Entry(arrays, {"windows": about, "notes": notes})


def _from(entry: Entry) -> Windows:
    for line in entry.facts["notes"]:
        note(line)
    found = {name: TokenWindows(entry.arrays[name], **about) for name, about in entry.facts["windows"].items()}
    calibration, judging = found.pop("calibration", None), found.pop("judging", None)
    return Windows(calibration, judging, {name.removeprefix("evaluation "): item for name, item in found.items()})
