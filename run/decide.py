"""The first decision of a run: the plan that the settings ask for, or the one that is replayed."""

from dataclasses import replace

from core.measured import Outliers
from pruning.limits import Limits
from run.decision import Decision, Replayed, agreed, rank
from run.recall import importance_of, outliers_of, prior_of
from run.session import Session


def decide(session: Session) -> Decision:
    """Outliers, importance, prior, scores, plan; or the plan that is replayed."""
    if session.replayed is not None:
        return agreed(Replayed(session.replayed))
    outliers = outliers_of(session) if session.settings.refinement.protect != "none" else None
    scores = session.settings.scores
    importance = importance_of(session, scores)
    prior = prior_of(session, scores) if scores.temperature > 0 else None
    with session.stages("plan"):
        decision = rank(
            session.architecture,
            importance,
            prior,
            transforms=scores.transforms,
            limits=_protecting(session, outliers),
            budget=session.settings.budget,
            outliers=outliers,
        )
    return agreed(decision)


def _protecting(session: Session, outliers: Outliers | None) -> Limits:
    """The session's limits; under ``--protect outliers`` outlier channels never go."""
    if outliers is None or session.settings.refinement.protect != "outliers":
        return session.limits
    return replace(session.limits, protected=tuple(outliers.rows.tolist()))
