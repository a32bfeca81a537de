"""Why the plan is as it is: the diagnosis, and the files that tell it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import PruningError
from core.files import write_json
from core.measured import Importance
from core.transforms import Remedy
from diagnostics.findings.diagnosis import Diagnosis, diagnose
from diagnostics.findings.quantities import Extras
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.findings.rules_of_the_cost import Cost, cost_findings
from diagnostics.reports.analysis import write_reports
from diagnostics.reports.pictures import draw_pictures
from importance.scoring import Scores
from pruning.budget import budget_params
from pruning.limits import Limits, frozen_groups, smallest_removal_params
from pruning.plan_file import write_plan
from run.decision import Decision, Ranked, Replayed
from run.lose_less import ways_to_lose_less
from run.option_rules import refusal
from run.self_windows import SAMPLE, write_sample
from run.session import Session
from run.stability import stability_of


def explain(session: Session, decision: Decision) -> tuple[Diagnosis, list[Path]]:
    """Diagnose the plan; write plan, reports and pictures. Returns their paths."""
    with session.stages("explain"):
        diagnosis = diagnosis_of(session, decision)
        if not session.writes:
            return diagnosis, []
        importance, scores = _sources(decision)
        analysis, plan = session.folder / "analysis", decision.plan
        written = [write_plan(analysis / "pruning_plan.json", plan)]
        written += [write_json(analysis / f"{name}.json", content) for name, content in decision.records.items()]
        if session.written is not None:
            written.append(write_sample(analysis / SAMPLE, session.written, session.tokenizer))
        written += write_reports(analysis, diagnosis, plan, importance, scores)
        if session.draws:
            written += draw_pictures(
                session.folder / "visualization", diagnosis, plan, importance, scores, session.warnings
            )
    return diagnosis, written


def with_cost(session: Session, decision: Decision, diagnosis: Diagnosis, evaluation: Mapping[str, Any]) -> Diagnosis:
    """The diagnosis with what the evaluation tells, in its file too. evaluation: of both models."""
    asked = session.settings.evaluation
    elsewhere = None if asked.eval_elsewhere == "none" else asked.eval_elsewhere
    cost = Cost(
        evaluation,
        home=[source.name for source in session.settings.calibration.sources],
        texts=Remedy(eval_datasets=asked.eval_datasets, eval_elsewhere=elsewhere),
        to_lose_less=ways_to_lose_less(session, decision),
        refusal=partial(_refusal, session, decision),
    )
    judged = diagnosis.with_findings(cost_findings(cost))
    if judged is not diagnosis:
        write_json(session.folder / "analysis" / "gradient_diagnosis.json", judged.to_json())
    return judged


def with_stability(session: Session, decision: Decision) -> Decision:
    """The decision with what plans from its importance's halves share; a replayed one has none. numpy only."""
    if isinstance(decision, Replayed):
        return decision
    return replace(decision, stability=stability_of(decision))


def diagnosis_of(session: Session, decision: Decision) -> Diagnosis:
    active = active_remedies(session, decision)
    if isinstance(decision, Replayed):  # it was made under limits of its own
        frozen = frozen_groups(session.architecture, Limits())
        return diagnose(session.architecture, None, None, decision.plan, None, frozen, active)
    least = smallest_removal_params(session.architecture, decision.limits) or None
    extras = Extras(decision.outliers, decision.check, decision.stability, least)
    return diagnose(
        session.architecture,
        decision.importance,
        decision.scores,
        decision.plan,
        decision.prior,
        decision.frozen,
        active,
        extras,
    )


def active_remedies(session: Session, decision: Decision) -> ActiveRemedies:
    scores, limits = session.settings.scores, session.limits
    transforms, criterion = scores.transforms, scores.importance_method
    if isinstance(decision, Ranked):
        transforms, limits, criterion = decision.transforms, decision.limits, decision.importance.criterion
    return ActiveRemedies(
        clip=transforms.clip,
        normalise=transforms.normalise,
        temperature=transforms.temperature,
        max_block_ratio=limits.max_block_ratio,
        criterion=criterion,
        clip_percentiles=(transforms.clip_low, transforms.clip_high),
        dtype=str(session.dtype).removeprefix("torch."),
        refusal=partial(_refusal, session, decision),
    )


def _refusal(session: Session, decision: Decision, remedy: Remedy) -> str | None:
    """Why this run with a remedy on it would be refused: by its other settings, or by a cap out of the budget's
    reach."""
    refused = refusal(session.settings, remedy)
    if refused is not None or remedy.max_block_ratio is None:
        return refused
    limits, plan = replace(session.limits, max_block_ratio=remedy.max_block_ratio), decision.plan
    try:
        budget_params(session.architecture, plan.requested_ratio, plan.ratio_of, limits)
    except PruningError as error:
        return str(error)
    return None


def _sources(decision: Decision) -> tuple[Importance | None, Scores | None]:
    return (None, None) if isinstance(decision, Replayed) else (decision.importance, decision.scores)
