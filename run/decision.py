"""What a run decided: a plan that was ranked, with everything it came from, or one that is replayed. numpy only."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core import ranks
from core.groups import Architecture
from core.measured import Importance, Outliers, Prior, Stability
from core.plan import PruningPlan
from core.plan_check import PlanCheck
from core.transforms import Transforms
from importance.scoring import Scores, score_groups
from pruning.limits import Limits, frozen_groups
from pruning.planning import plan_removal
from pruning.uniform import plan_uniform
from run.settings import BudgetSettings


@dataclass(frozen=True)
class Replayed:
    """A saved plan, carried out as it is. Nothing was measured to make it."""

    plan: PruningPlan

    @property
    def records(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Ranked:
    """A plan and what it was made from.

    scores: under ``transforms``; plan: of scores under ``limits``, for ``budget``. outliers: where they were looked
    for. first_importance: of the dense model, whatever refinements measured after it. check: what each block of the
    plan loses alone, where it was measured. stability: of the ranking by the first importance. records: what
    refinements tried, as the content of ``analysis/<name>.json``.
    """

    plan: PruningPlan
    importance: Importance
    prior: Prior | None
    scores: Scores
    transforms: Transforms
    limits: Limits
    budget: BudgetSettings
    first_importance: Importance
    outliers: Outliers | None = None
    check: PlanCheck | None = None
    stability: Stability | None = None
    records: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        return self.plan.architecture

    @property
    def frozen(self) -> np.ndarray:
        """bool (G,): groups that can never be removed."""
        return frozen_groups(self.architecture, self.limits)

    def replanned(
        self, *, scores: Scores | None = None, limits: Limits | None = None, ratio: float | None = None
    ) -> "Ranked":
        """The same with another plan: of these scores, under these limits, for this ratio; each None: its own."""
        scores, limits = scores or self.scores, limits or self.limits
        budget = self.budget if ratio is None else replace(self.budget, pruning_ratio=ratio)
        plan = plan_of(self.architecture, scores, limits, budget)
        return replace(self, plan=plan, scores=scores, limits=limits)

    def noting(self, **records: Any) -> "Ranked":
        """The same with further records."""
        return replace(self, records=self.records | records)


Decision = Replayed | Ranked


def agreed(decision: Decision) -> Decision:
    """The decision, which all processes that work on the run have come to. DataError where they have not."""
    ranks.insist_on_same(decision.plan.keep.tobytes(), "plan", "give every machine the same program and files")
    return decision


def rank(
    architecture: Architecture,
    importance: Importance,
    prior: Prior | None,
    *,
    transforms: Transforms,
    limits: Limits,
    budget: BudgetSettings,
    outliers: Outliers | None = None,
) -> Ranked:
    """Scores and plan. prior: needed where the transforms have a temperature. BudgetError: the ratio is out of reach;
    NumericalError: an importance is NaN, Inf or negative."""
    frozen = frozen_groups(architecture, limits)
    acting = prior if transforms.temperature > 0 else None
    scores = score_groups(architecture.groups, importance.values, transforms, frozen=frozen, prior=acting)
    plan = plan_of(architecture, scores, limits, budget)
    return Ranked(plan, importance, acting, scores, transforms, limits, budget, importance, outliers)


def plan_of(architecture: Architecture, scores: Scores, limits: Limits, budget: BudgetSettings) -> PruningPlan:
    """The plan of a ranking. BudgetError: the ratio is out of reach."""
    asked: dict[str, Any] = {"ratio": budget.pruning_ratio, "ratio_of": budget.ratio_of, "limits": limits}
    if limits.uniform:
        return plan_uniform(architecture, scores.score, scores.order, **asked)
    return plan_removal(architecture, scores.order, **asked)
