"""The numbers behind every finding: one value a layer, measured before any judgement is passed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from core.groups import Architecture
from core.kinds import TABLE
from core.measured import NO_GRADIENTS, GradientStatistics, Importance, Outliers, Prior, Stability
from core.plan import PruningPlan
from core.plan_check import PlanCheck
from diagnostics.findings.by_layer import layer_means, layer_quantiles

TOLERANCE = 1e-9  # bounds are compared with this slack: 0.7 - 0.4 must not differ from 0.3


class Scores(Protocol):
    """What the ranking was made from. per_parameter, score: float64 (G,), before and after the transforms.
    clipped_share: float64 (L,) or None. factor: float64 (L, kinds), B^T by layer and kind, or None."""

    @property
    def per_parameter(self) -> np.ndarray: ...
    @property
    def score(self) -> np.ndarray: ...
    @property
    def clipped_share(self) -> np.ndarray | None: ...
    @property
    def all_zero_layers(self) -> tuple[int, ...]: ...
    @property
    def factor(self) -> np.ndarray | None: ...
    @property
    def notes(self) -> list[str]: ...


@dataclass(frozen=True)
class Extras:
    """What only some runs measure. outliers: channels of huge output norm. check: each block's loss alone.
    stability: what plans from two halves of the windows share. smallest_step_params: parameters of the cheapest
    removal that the limits allow, None where it is not known."""

    outliers: Outliers | None = None
    check: PlanCheck | None = None
    stability: Stability | None = None
    smallest_step_params: int | None = None


def extreme_threshold(achieved: float) -> float:
    """A layer is extreme above max(0.5, min(0.9, 1.5 r)), r = achieved = removed / prunable parameters."""
    return max(0.5, min(0.9, 1.5 * achieved))


@dataclass(frozen=True)
class Range:
    """Smallest and largest value over layers, their ratio, and why the ratio is None where it is."""

    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    note: str | None = None

    @property
    def pair(self) -> list[float] | None:
        return None if self.low is None or self.high is None else [self.low, self.high]


def range_of(values: np.ndarray, layers: np.ndarray) -> Range:
    """max/min over ``layers`` (ascending indices) of ``values``, float64 (L,). The ratio is None, with a
    note, where a value is not positive or not finite; low and high then run over the finite ones."""
    chosen = values[layers]
    finite = chosen[np.isfinite(chosen)]
    if not len(finite):
        return Range(note="no layer has a finite value")
    low, high = float(finite.min()), float(finite.max())
    bad = layers[~(np.isfinite(chosen) & (chosen > 0))]
    if len(bad):
        return Range(low, high, None, f"not positive or not finite in {len(bad)} of {len(layers)} layers")
    with np.errstate(over="ignore"):
        ratio = float(np.float64(high) / np.float64(low))
    return Range(low, high, ratio) if np.isfinite(ratio) else Range(low, high, None, "ratio beyond float64")


@dataclass(frozen=True)
class Measured:
    """Everything a rule may look at. importance, scores and prior are None where they were not measured.

    frozen: bool (G,), groups that may never be removed.
    """

    architecture: Architecture
    plan: PruningPlan
    importance: Importance | None
    scores: Scores | None
    prior: Prior | None
    frozen: np.ndarray
    extras: Extras = Extras()

    @cached_property
    def rate(self) -> np.ndarray:
        """float64 (L,): removed / original prunable parameters of each layer."""
        return self.plan.layer_rates()

    @property
    def achieved(self) -> float:
        """r: removed / prunable parameters of the model."""
        return self.plan.achieved_of_prunable

    @property
    def threshold(self) -> float:
        return extreme_threshold(self.achieved)

    @cached_property
    def extreme(self) -> np.ndarray:
        """Ascending indices of the extreme layers."""
        return np.flatnonzero(self.rate > self.threshold + TOLERANCE)

    @cached_property
    def frozen_layers(self) -> np.ndarray:
        """bool (L,): the layer has no group that may be removed."""
        groups = self.plan.groups
        return np.asarray(np.bincount(groups.layer, weights=~self.frozen, minlength=groups.num_layers) == 0)

    @property
    def open_layers(self) -> np.ndarray:
        """Ascending indices of the layers that are not frozen."""
        return np.flatnonzero(~self.frozen_layers)

    @property
    def spread(self) -> float:
        """Largest minus smallest rate over the layers that are not frozen; 0 where all are."""
        rates = self.rate[self.open_layers]
        return float(rates.max() - rates.min()) if len(rates) else 0.0

    @property
    def gradients(self) -> GradientStatistics | None:
        return self.importance.gradients if self.importance else None

    @property
    def gradient_source(self) -> str:
        return self.gradients.source if self.gradients else NO_GRADIENTS

    @cached_property
    def gradient_mean(self) -> Range:
        return self._gradient_range("mean")

    @cached_property
    def gradient_norm(self) -> Range:
        return self._gradient_range("norm")

    @cached_property
    def importance_mean(self) -> np.ndarray:
        """float64 (L,): cost-weighted mean importance per parameter of the groups that may be removed."""
        if self.scores is None:
            return self._unknown
        return layer_means(self.plan.groups, self.scores.per_parameter, ~self.frozen)

    @cached_property
    def median_before(self) -> np.ndarray:
        """float64 (L,): cost-weighted median importance per parameter."""
        return self._medians("per_parameter")

    @cached_property
    def median_after(self) -> np.ndarray:
        """float64 (L,): cost-weighted median of the score that is ranked."""
        return self._medians("score")

    def score_range(self, medians: np.ndarray) -> Range:
        if self.scores is None:
            return Range(note="scores were not measured")
        return range_of(medians, self.open_layers)

    def row(self, layer: int) -> dict[str, Any]:
        """One layer in numbers; NaN where a quantity was not measured."""
        gradients, prior = self.gradients, self.prior
        factor = self.scores.factor if self.scores else None
        clipped = self.scores.clipped_share if self.scores else None
        return {
            "layer_idx": layer,
            "pruning_rate": self.rate[layer],
            "extreme": bool(layer in self.extreme),
            "frozen": bool(self.frozen_layers[layer]),
            "removed_whole": layer in self.plan.removed_layers,
            "importance": self.importance_mean[layer],
            "score_median_before": self.median_before[layer],
            "score_median_after": self.median_after[layer],
            "gradient_mean": gradients.mean[layer] if gradients else None,
            "gradient_norm": gradients.norm[layer] if gradients else None,
            "gradient_min": gradients.min[layer] if gradients else None,
            "gradient_max": gradients.max[layer] if gradients else None,
            **self._by_kind("prior", prior.block[layer] if prior else None),
            "prior_layer": prior.layer[layer] if prior else None,
            **self._by_kind("factor", factor[layer] if factor is not None else None),
            "clipped_share": clipped[layer] if clipped is not None else None,
        }

    def _by_kind(self, name: str, values: np.ndarray | None) -> dict[str, Any]:
        """One quantity of a layer's blocks, a key for each kind in the model. values: float64 (kinds,) or None."""
        kinds = self.architecture.kinds
        return {f"{name}_{TABLE[kind].name}": None if values is None else values[kind] for kind in kinds}

    @property
    def _unknown(self) -> np.ndarray:
        return np.full(self.architecture.num_layers, np.nan)

    def _gradient_range(self, name: str) -> Range:
        if self.gradients is None:
            return Range(note="no gradients were measured")
        return range_of(getattr(self.gradients, name), np.arange(self.architecture.num_layers))

    def _medians(self, name: str) -> np.ndarray:
        if self.scores is None:
            return self._unknown
        return layer_quantiles(self.plan.groups, getattr(self.scores, name), ~self.frozen, [0.5])[:, 0]
