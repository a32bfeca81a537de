"""Importance, prior, outliers and dense evaluation: from the cache of an earlier run, else from the model."""

import argparse
from typing import Any

from cli.cache import KeptMeasurements, importance_key, outliers_key, perplexity_key, prior_key
from cli.job import Job
from cli.low_memory import StreamedModel, streams
from cli.record import Stages
from core.cache import Entry
from core.measures import Importance, Outliers, Prior
from core.windows import TokenWindows
from importance.kept import (
    importance_entry,
    importance_from,
    outliers_entry,
    outliers_from,
    prior_entry,
    prior_from,
)
from importance.measure import measure_importance
from importance.outliers import find_outliers
from importance.priors import measure_prior
from models.loading import load_model
from models.rounding import check_range

OUTLIER_WINDOWS = 16  # such channels stand out on any text, and on few tokens


class ModelOnDemand:
    """The dense model, loaded when a stage first needs it; a run that finds everything in the cache never does.

    streamed: whether a StreamedModel stands in for it.
    """

    def __init__(self, job: Job, options: argparse.Namespace, stages: Stages) -> None:
        self.job, self.options, self.stages = job, options, stages
        self.streamed = streams(job, options)
        self._model: Any = None

    def __call__(self) -> Any:
        if self._model is None:
            with self.stages("open checkpoint" if self.streamed else "load model"):
                job = self.job
                if self.streamed:
                    self._model = StreamedModel(job, self.options)
                else:
                    self._model = load_model(job.source, job.device, job.dtype)
                    check_range(self._model, job.saved_dtype)
        return self._model

    def give_away(self) -> Any:
        """The model, which the caller may use up; not to be asked for again."""
        model, self._model = self(), None
        return model


def importance_of(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows | None,
    kept: KeptMeasurements,
    stages: Stages,
) -> Importance:
    def measure() -> Entry:
        dense = model()
        with stages("importance"):
            if isinstance(dense, StreamedModel):
                return importance_entry(dense.magnitude())
            return importance_entry(measured_importance(dense, job, options, calibration))

    return importance_from(kept.recall("importance", importance_key(options, calibration), measure))


def measured_importance(
    model: Any, job: Job, options: argparse.Namespace, calibration: TokenWindows | None
) -> Importance:
    """Of the model as it is, hooks included; no cache has a say."""
    return measure_importance(
        model,
        job.source.family,
        job.source.architecture,
        calibration,
        criterion=options.importance_method,
        gradient_reduction=options.gradient_reduction,
        batch_size=options.batch_size,
    )


def prior_of(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows,
    kept: KeptMeasurements,
    stages: Stages,
) -> Prior:
    some = calibration.head(options.prior_samples)

    def measure() -> Entry:
        dense = model()
        with stages("prior"):
            family, size = job.source.family, options.batch_size
            return prior_entry(measure_prior(dense, family, some, method=options.prior, batch_size=size))

    return prior_from(kept.recall("prior", prior_key(options, some), measure))


def outliers_of(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows,
    kept: KeptMeasurements,
    stages: Stages,
) -> Outliers:
    some = calibration.head(OUTLIER_WINDOWS)

    def measure() -> Entry:
        dense = model()
        with stages("outliers"):
            architecture, size = job.source.architecture, options.batch_size
            return outliers_entry(find_outliers(dense, job.source.family, architecture, some, batch_size=size))

    return outliers_from(kept.recall("outliers", outliers_key(some), measure))


class DensePerplexities:
    """Perplexities of the dense model by dataset, those that an earlier run left."""

    def __init__(self, held_out: dict[str, TokenWindows], kept: KeptMeasurements) -> None:
        self.held_out, self.kept = held_out, kept
        entries = {name: kept.find(_part(name), perplexity_key(windows)) for name, windows in held_out.items()}
        self.known: dict[str, Any] = {name: entry.facts for name, entry in entries.items() if entry is not None}

    @property
    def missing(self) -> dict[str, TokenWindows]:
        return {name: windows for name, windows in self.held_out.items() if name not in self.known}

    def completed(self, measured: dict[str, Any]) -> dict[str, Any]:
        """All of them in the order of the datasets; ``measured``, of those that were missing, is kept."""
        for name, found in measured.items():
            self.kept.keep(_part(name), perplexity_key(self.held_out[name]), Entry({}, found))
        found = self.known | measured
        return {name: found[name] for name in self.held_out}


def _part(dataset: str) -> str:
    return f"dense perplexity on {dataset}"
