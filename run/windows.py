"""The windows of a run: drawn from its texts, or those that an earlier run drew from the same texts.

Texts that exist are read first, for which no weight is loaded; ``run/self_windows.py`` adds what the model writes.
"""

from dataclasses import dataclass, field
from typing import Any

from calibration import draw_windows, evaluation_windows
from calibration.mixing import counts_of, mixed
from calibration.states import text_state
from core.cache import Entry
from core.errors import DataError
from core.names import SELF
from core.say import heard_notes, note
from core.sources import windows_by_share
from core.windows import TokenWindows
from models.loading import ModelSource
from run.cache_keys import windows_key
from run.measurement_cache import MeasurementCache
from run.settings import Settings

USES = ("calibration", "judging", "evaluation")
ELSEWHERE_TOKENS, ELSEWHERE_WINDOWS = 2**13, 8  # at least, of text of another kind: loss there is known to 0.01 nats


@dataclass(frozen=True)
class Windows:
    """calibration: windows to measure and refit on, None where nothing does. judging: windows that importance did not
    see, for plans on trial, None where none is tried. evaluation: by dataset. written: those of the calibration that
    the model wrote itself, None where it wrote none."""

    calibration: TokenWindows | None = None
    judging: TokenWindows | None = None
    evaluation: dict[str, TokenWindows] = field(default_factory=dict)
    written: TokenWindows | None = None


@dataclass(frozen=True)
class TextWindows:
    """The same by text, before several texts are mixed."""

    calibration: dict[str, TokenWindows] = field(default_factory=dict)
    judging: dict[str, TokenWindows] = field(default_factory=dict)
    evaluation: dict[str, TokenWindows] = field(default_factory=dict)

    def mixed(self, settings: Settings) -> Windows:
        """As they are used, each text in its place."""
        text = settings.calibration
        calibration, judging = (
            {source.name: parts[source.name] for source in text.sources if source.name in parts}
            for parts in (self.calibration, self.judging)
        )
        return Windows(
            mixed(calibration, text.dataset, text.seed) if calibration else None,
            mixed(judging, text.dataset, text.seed) if judging else None,
            {name: self.evaluation[name] for name in settings.evaluation.texts if name in self.evaluation},
            self.calibration.get(SELF),
        )


def wanted_windows(settings: Settings, judging: int) -> dict[str, tuple[int, int]]:
    """Text -> (calibration windows, judging windows of ``judging`` in all); empty where nothing calibrates."""
    text = settings.calibration
    if not settings.reads_calibration:
        return {}
    judged = windows_by_share(text.sources, judging)
    return {
        name: (count, judges)
        for (name, count), judges in zip(counts_of(text.sources, text.num_samples).items(), judged, strict=True)
    }


def read_windows(settings: Settings, source: ModelSource, judging: int, cache: MeasurementCache) -> TextWindows:
    """Calibration, ``judging`` and evaluation windows of the texts that exist, each where the settings need it.

    They come from the cache where texts, tokenizer and everything asked are as they were; text that only the hub has
    is read anew. Raises DataError.
    """
    if not _read_names(settings):
        return TextWindows()
    key = None if cache.folder is None else _key(settings, source, judging)
    if key is None:
        return _drawn(settings, source, judging)
    return _from(cache.recall("windows", key, lambda: _entry(settings, source, judging), measured=False))


def _drawn(settings: Settings, source: ModelSource, judging: int) -> TextWindows:
    """From one reading of each text."""
    text, asked = settings.calibration, settings.evaluation
    reading: dict[str, Any] = {"text_column": text.text_column, "vocab_rows": source.vocab_rows}
    drawn = TextWindows()
    for name, (count, judges) in wanted_windows(settings, judging).items():
        if name == SELF:
            continue
        drawn.calibration[name], after = draw_windows(
            name, source.tokenizer, count, judges, text.seq_len, text.seed, **reading
        )
        if after is not None:
            drawn.judging[name] = after
    for name in asked.texts:
        windows = None if name == SELF else _held_out(name, settings, source, reading)
        if windows is not None:
            drawn.evaluation[name] = windows
    return drawn


def _held_out(name: str, settings: Settings, source: ModelSource, reading: dict[str, Any]) -> TokenWindows | None:
    """Evaluation windows of a text. DataError; of a text of another kind, which nobody need have asked for, a note says
    why there are none."""
    text, asked = settings.calibration, settings.evaluation
    assert asked.eval_seq_len is not None
    elsewhere = name not in asked.eval_datasets
    few = max(ELSEWHERE_WINDOWS, ELSEWHERE_TOKENS // asked.eval_seq_len)
    try:
        # --dataset is named even where nothing calibrates on it, so that replays are judged on the same text.
        return evaluation_windows(
            name,
            source.tokenizer,
            asked.eval_seq_len,
            asked.eval_samples,
            text.dataset,
            calibration_tokens=text.num_samples * text.seq_len if settings.reads_calibration else None,
            spread=few if elsewhere and asked.eval_samples is None else None,
            **reading,
        )
    except DataError as error:
        if not elsewhere:
            raise
        note(f"nothing is evaluated elsewhere: {error}")
        return None


def _read_names(settings: Settings) -> tuple[str, ...]:
    """Texts that exist and have a say: those of ``--dataset`` too where nothing calibrates, as in ``_drawn``."""
    names = [*(source.name for source in settings.calibration.sources), *settings.evaluation.texts]
    return tuple(dict.fromkeys(name for name in names if name != SELF))


def _key(settings: Settings, source: ModelSource, judging: int) -> dict[str, Any] | None:
    """Everything the windows depend on; None where that cannot be told without reading them."""
    text, asked = settings.calibration, settings.evaluation
    wanted = wanted_windows(settings, judging)
    calibrates = (text.dataset, wanted, text.seq_len, text.seed) if wanted else None
    evaluates = (asked.eval_seq_len, asked.eval_samples, list(asked.texts), asked.eval_elsewhere)
    try:
        texts = {name: text_state(name, text.text_column) for name in _read_names(settings)}
        key = windows_key(source, calibration=calibrates, evaluation=evaluates, texts=texts)
    except OSError:
        return None
    return None if None in texts.values() else key


def _entry(settings: Settings, source: ModelSource, judging: int) -> Entry:
    """Token ids int64 (N, T) by name, and what else is known of them; notes that were said on the way."""
    with heard_notes() as notes:
        drawn = _drawn(settings, source, judging)
    found = {f"{use} {name}": item for use in USES for name, item in getattr(drawn, use).items()}
    arrays = {name: windows.ids for name, windows in found.items()}
    about = {
        name: {part: getattr(windows, part) for part in ("dataset", "split", "source", "text_bytes")}
        for name, windows in found.items()
    }
    return Entry(arrays, {"windows": about, "notes": notes})


def _from(entry: Entry) -> TextWindows:
    for line in entry.facts["notes"]:
        note(line)
    found = TextWindows()
    for key, about in entry.facts["windows"].items():
        use, name = key.split(" ", 1)
        getattr(found, use)[name] = TokenWindows(entry.arrays[key], **about)
    return found
