"""``--remedy auto``: try the remedies on the scores at hand, measure what each plan costs, prune with the best.

A candidate costs one repair and one forward pass over the judging windows, calibration text that importance did not
see. The baseline is the settings as given.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.errors import PruningError
from core.measured import Prior
from core.transforms import Remedy, Transforms
from diagnostics.findings.rules_of_rates import healthy
from diagnostics.reports.closing import table
from pruning.limits import Limits
from pruning.trials import Choice, Trial, choose, paired
from run.decision import Ranked, rank
from run.explain import active_remedies, diagnosis_of
from run.recall import prior_of
from run.refine.driver import Refined
from run.session import Session
from run.settings import Settings

# Tried in any case, each instead of the transforms that were given; percentiles and tau stay as given.
USUAL = (
    Remedy(),
    Remedy(normalise="log"),
    Remedy(normalise="sqrt"),
    Remedy(normalise="minmax"),
    Remedy(clip=True, normalise="log"),
    Remedy(temperature=1.0),
    Remedy(normalise="log", temperature=1.0),
)


@dataclass(frozen=True)
class Candidate:
    """Transforms and limits to try, and the issues of the findings that name them."""

    transforms: Transforms
    limits: Limits
    named_by: tuple[str, ...] = ()

    @property
    def flags(self) -> str:
        """The flags of transforms and cap, whole; empty for none."""
        cap = self.limits.max_block_ratio
        return " ".join([self.transforms.flags] + [f"--max_block_ratio {cap:g}"] * (cap < 1)).strip()


class Remedies:
    record = stage = "remedy"

    def wanted(self, settings: Settings) -> bool:
        return settings.refinement.remedy == "auto"

    def refine(self, session: Session, decision: Ranked) -> Refined:
        """The record says of each candidate what it lost, and which were refused by the ratio or the scores."""
        prior = decision.prior or prior_of(session, session.settings.scores)
        trials: list[Trial] = []
        outcomes: list[Ranked] = []
        refused: list[dict[str, Any]] = []
        for candidate in candidates(session, decision):
            try:
                other = _planned(candidate, decision, prior)
            except PruningError as error:
                refused.append({"flags": candidate.flags, "named_by": candidate.named_by, "reason": str(error)})
                continue
            nll = session.judge.loss(other.plan, f"remedy {candidate.flags or 'none'}")
            trials.append(_trial(candidate, session, other, nll, baseline=not trials))
            outcomes.append(other)
        choice = choose(trials)
        return Refined(outcomes[choice.winner], _record(choice, session, refused), report(choice))


def candidates(session: Session, decision: Ranked) -> list[Candidate]:
    """The baseline, what the findings on it name, no transform at all, and the usual ones; none of them twice."""
    given = decision.transforms
    none = replace(given, clip=False, normalise=None, temperature=0.0)
    wanted = [Candidate(given, decision.limits)]
    wanted += [_under(remedy, given, decision.limits, issues) for remedy, issues in _named(session, decision).items()]
    wanted += [_under(remedy, none, decision.limits) for remedy in USUAL]
    different: dict[str, Candidate] = {}
    for candidate in wanted:
        different.setdefault(candidate.flags, candidate)
    return list(different.values())


def _named(session: Session, decision: Ranked) -> dict[Remedy, tuple[str, ...]]:
    """Remedies that findings on the baseline name -> the issues that name them, the most severe first."""
    named: dict[Remedy, tuple[str, ...]] = {}
    for finding in diagnosis_of(session, decision).findings:
        if finding.remedy is not None:
            named[finding.remedy] = (*named.get(finding.remedy, ()), finding.issue)
    return named


def _under(remedy: Remedy, transforms: Transforms, limits: Limits, issues: tuple[str, ...] = ()) -> Candidate:
    cap = limits.max_block_ratio if remedy.max_block_ratio is None else remedy.max_block_ratio
    return Candidate(remedy.applied_to(transforms), replace(limits, max_block_ratio=cap), issues)


def _planned(candidate: Candidate, baseline: Ranked, prior: Prior) -> Ranked:
    return rank(
        baseline.architecture,
        baseline.importance,
        prior,
        transforms=candidate.transforms,
        limits=candidate.limits,
        budget=baseline.budget,
        outliers=baseline.outliers,
    )


def _trial(candidate: Candidate, session: Session, decision: Ranked, nll: np.ndarray, *, baseline: bool) -> Trial:
    measured, flags = diagnosis_of(session, decision).measured, candidate.flags
    return Trial(
        name=f"baseline ({flags or 'no transform'})" if baseline else flags or "no transform",
        flags=flags,
        named_by=candidate.named_by,
        nll=nll,
        healthy=healthy(measured, active_remedies(session, decision)) is not None,
        num_extreme=len(measured.extreme),
        spread=measured.spread,
        of_total=decision.plan.achieved_of_total,
    )


def report(choice: Choice) -> str:
    """What was tried, one line each, and why the winner won."""
    rows = [("remedy tried", "nats/token", "minus baseline", "extreme", "spread", "healthy")]
    for trial in choice.trials:
        mean, error = paired(trial.nll, choice.trials[0].nll)
        against = "" if trial is choice.trials[0] else f"{mean:+.4f} ± {error:.4f}"
        shape = (str(trial.num_extreme), f"{100 * trial.spread:.0f}", "yes" if trial.healthy else "no")
        rows.append((trial.name, f"{trial.mean:.4f}", against, *shape))
    return f"{table(rows)}\ntaken: {choice.trials[choice.winner].name}. {choice.reason}"


def _record(choice: Choice, session: Session, refused: list[dict[str, Any]]) -> dict[str, Any]:
    winner = choice.trials[choice.winner]
    return {
        "taken": {"name": winner.name, "flags": winner.flags, "is_baseline": choice.winner == 0},
        "reason": choice.reason,
        "windows": session.judge.describe(),
        "tried": choice.to_json(),
        "refused": refused,
    }
