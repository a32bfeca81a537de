"""The diagnosis of a finished plan: which layers it empties, how scores looked, what to try next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.groups import Architecture
from core.measured import Importance, Prior
from core.plan import PruningPlan
from diagnostics.findings.finding import SEVERITIES, Finding
from diagnostics.findings.quantities import Extras, Measured, Range, Scores
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.findings.rules import find


@dataclass(frozen=True)
class Diagnosis:
    """measured: the numbers by layer. findings: what they mean, the most severe first."""

    measured: Measured
    findings: tuple[Finding, ...]

    @property
    def extreme_layers(self) -> tuple[int, ...]:
        """Ascending indices of the layers that lose more than ``threshold``."""
        return tuple(self.measured.extreme.tolist())

    @property
    def threshold(self) -> float:
        return self.measured.threshold

    def with_findings(self, further: Sequence[Finding]) -> "Diagnosis":
        """The same with further findings, behind those that are as severe."""
        if not further:
            return self
        every = sorted([*self.findings, *further], key=lambda finding: SEVERITIES.index(finding.severity))
        return replace(self, findings=tuple(every))

    def to_json(self) -> dict[str, Any]:
        """The content of ``gradient_diagnosis.json``; NaN stands where a quantity was not measured."""
        m = self.measured
        rows = [m.row(layer) for layer in range(m.architecture.num_layers)]
        return {
            "gradient_source": m.gradient_source,
            "gradient_statistics": {
                "mean_range": m.gradient_mean.pair,
                "mean_ratio": m.gradient_mean.ratio,
                "norm_range": m.gradient_norm.pair,
                "norm_ratio": m.gradient_norm.ratio,
            },
            "score_statistics": {
                "before": _score_statistics(m.score_range(m.median_before)),
                "after": _score_statistics(m.score_range(m.median_after)),
            },
            "extreme_threshold": m.threshold,
            "rate_spread": m.spread,
            "num_extreme_layers": len(m.extreme),
            "extreme_pruning_layers": [_extreme_row(rows[layer]) for layer in m.extreme],
            "diagnosis": [finding.to_json() for finding in self.findings],
            "notes": [*(m.importance.notes if m.importance else []), *(m.scores.notes if m.scores else [])],
            "prior": _prior(m.prior),
            "layers": rows,
        }


def diagnose(
    architecture: Architecture,
    importance: Importance | None,
    scores: Scores | None,
    plan: PruningPlan,
    prior: Prior | None,
    frozen: np.ndarray,
    active: ActiveRemedies,
    extras: Extras | None = None,
) -> Diagnosis:
    """Judge a plan. frozen: bool (G,), True = may never be removed. active: what the run had switched on.

    importance and scores are None where a saved plan was replayed: every statistic is then null and a finding
    says so.
    """
    measured = Measured(architecture, plan, importance, scores, prior, frozen, extras or Extras())
    return Diagnosis(measured, find(measured, active))


def _score_statistics(found: Range) -> dict[str, Any]:
    return {"median_range": found.pair, "score_ratio": found.ratio, "note": found.note}


def _extreme_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("layer_idx", "pruning_rate", "importance", "gradient_mean", "gradient_norm")}


def _prior(prior: Prior | None) -> dict[str, Any] | None:
    if prior is None:
        return None
    return {
        "method": prior.method,
        "num_windows": prior.num_windows,
        "dense_nll_nats_per_token": prior.dense_nll,
    }
