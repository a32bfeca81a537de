"""Plans whose rates can be read off: every layer holds 100 prunable parameters, 2 KV groups and 98 channels of 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.groups import MLP, Architecture, LayerShape
from core.measured import GradientStatistics, Importance
from core.plan import PruningPlan
from diagnostics.findings.diagnosis import Diagnosis, diagnose
from diagnostics.findings.finding import Finding
from diagnostics.findings.remedies import ActiveRemedies

SHAPE = LayerShape(
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    intermediate_size=98,
    kv_group_params=1,
    channel_params=1,
    norm_params=5,
)
EMBEDDING = 200


def architecture(num_layers: int, shape: LayerShape = SHAPE) -> Architecture:
    return Architecture("llama", 8, EMBEDDING + num_layers * shape.total_params, layers=tuple([shape] * num_layers))


def plan_of(points: Sequence[int], shape: LayerShape = SHAPE, **changes: Any) -> PruningPlan:
    """A plan that takes the first ``points[l]`` channels of layer l: with SHAPE its rate is that many percent."""
    model = architecture(len(points), shape)
    keep = np.ones(len(model.groups), dtype=bool)
    for layer, count in enumerate(points):
        keep[model.groups.rows(layer, MLP)][:count] = False
    removed = int(model.groups.cost[~keep].sum())
    ratio = removed / model.prunable_params
    return replace(PruningPlan(model, keep, (), ratio, "prunable", removed, removed, ""), **changes)


@dataclass(frozen=True)
class FakeScores:
    per_parameter: np.ndarray
    score: np.ndarray
    clipped_share: np.ndarray | None = None
    all_zero_layers: tuple[int, ...] = ()
    factor: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


def scores_of(plan: PruningPlan, by_layer: Sequence[float] | None = None, **changes: Any) -> FakeScores:
    """Every group of layer l has the score ``by_layer[l]`` (1 by default), before and after the transforms."""
    values = np.ones(plan.architecture.num_layers) if by_layer is None else np.array(by_layer, dtype=float)
    s = values[plan.groups.layer]
    return replace(FakeScores(s, s), **changes)


def gradients_of(mean: Sequence[float], source: str = "weights") -> GradientStatistics:
    values = np.array(mean, dtype=np.float64)
    return GradientStatistics(values, 10 * values, 0.5 * values, 2 * values, source)


def importance_of(plan: PruningPlan, mean: Sequence[float] | None = None, **changes: Any) -> Importance:
    """Importance 1 for every group; ``mean`` is the mean |g| of each layer (1 by default)."""
    gradients = gradients_of([1.0] * plan.architecture.num_layers if mean is None else mean)
    return replace(Importance(np.ones(len(plan.groups)), "taylor", gradients, 32), **changes)


def judge(
    points: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    frozen_layers: Sequence[int] = (),
    active: Mapping[str, Any] | None = None,
    importance: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    **plan_changes: Any,
) -> Diagnosis:
    """The diagnosis of ``plan_of(points)``; the mappings change single fields of what was measured."""
    plan = plan_of(points, **plan_changes)
    return diagnose(
        plan.architecture,
        importance_of(plan, mean, **(importance or {})),
        scores_of(plan, **(scores or {})),
        plan,
        None,
        np.isin(plan.groups.layer, frozen_layers),
        ActiveRemedies(**(active or {})),
    )


def found(diagnosis: Diagnosis, issue: str) -> Finding:
    return {finding.issue: finding for finding in diagnosis.findings}[issue]


def issues(diagnosis: Diagnosis) -> set[str]:
    return {finding.issue for finding in diagnosis.findings}
