"""Importance, prior, outliers and dense perplexities: from the cache of an earlier run, else from the model."""

from typing import Any

from core.cache import Entry
from core.measured import Importance, Outliers, Prior
from core.windows import TokenWindows
from importance.entries import (
    importance_entry,
    importance_from,
    outliers_entry,
    outliers_from,
    prior_entry,
    prior_from,
)
from importance.outliers import find_outliers
from importance.priors import measure_prior
from run.cache_keys import importance_key, outliers_key, perplexity_key, prior_key
from run.measurement_cache import MeasurementCache
from run.session import Session
from run.settings import ScoreSettings

OUTLIER_WINDOWS = 16  # such channels stand out on any text, and on few tokens


def importance_of(session: Session, scores: ScoreSettings) -> Importance:
    """By ``scores.importance_method``, on the calibration windows where it reads any."""

    def measure() -> Entry:
        session.dense()  # booked as loading, not as this stage
        with session.stages("importance"):
            return importance_entry(session.measured_importance(scores))

    key = importance_key(scores, session.settings.calibration.seed, session.calibration)
    return importance_from(session.cache.recall("importance", key, measure))


def prior_of(session: Session, scores: ScoreSettings) -> Prior:
    """By ``scores.prior``, on the first ``scores.prior_samples`` calibration windows."""
    windows = session.calibrated.head(scores.prior_samples)

    def measure() -> Entry:
        dense = session.dense()
        with session.stages("prior"):
            size = session.batch_size
            return prior_entry(measure_prior(dense, session.family, windows, method=scores.prior, batch_size=size))

    key = prior_key(scores, session.settings.calibration.seed, windows)
    return prior_from(session.cache.recall("prior", key, measure))


def outliers_of(session: Session) -> Outliers:
    windows = session.calibrated.head(OUTLIER_WINDOWS)

    def measure() -> Entry:
        dense = session.dense()
        with session.stages("outliers"):
            size = session.batch_size
            return outliers_entry(find_outliers(dense, session.family, session.architecture, windows, batch_size=size))

    return outliers_from(session.cache.recall("outliers", outliers_key(windows), measure))


class DensePerplexities:
    """Perplexities of the dense model by dataset, those that an earlier run left."""

    def __init__(self, evaluation: dict[str, TokenWindows], cache: MeasurementCache) -> None:
        self.evaluation, self.cache = evaluation, cache
        entries = {name: cache.find(_part(name), perplexity_key(windows)) for name, windows in evaluation.items()}
        self.known: dict[str, Any] = {name: entry.facts for name, entry in entries.items() if entry is not None}

    @property
    def missing(self) -> dict[str, TokenWindows]:
        return {name: windows for name, windows in self.evaluation.items() if name not in self.known}

    def completed(self, measured: dict[str, Any]) -> dict[str, Any]:
        """All of them in the order of the datasets; ``measured``, of those that were missing, goes into the cache."""
        for name, facts in measured.items():
            self.cache.keep(_part(name), perplexity_key(self.evaluation[name]), Entry({}, facts))
        everything = self.known | measured
        return {name: everything[name] for name in self.evaluation}


def _part(dataset: str) -> str:
    return f"dense perplexity on {dataset}"
