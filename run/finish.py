"""The end of a run: the evaluation, the page, the record, and what the caller gets."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.failures import convenience
from core.files import write_json
from diagnostics.page.run_page import write_run_page
from diagnostics.reports.closing import closing_report
from evaluation.evaluate import results
from run.decision import Ranked
from run.explain import with_cost
from run.record import run_record
from run.result import Outcome, Result
from run.session import Session


def finish(session: Session, outcome: Outcome, written: Sequence[Path], argv: Sequence[str]) -> Result:
    """Write what is left to write, then put everything in place, run.json last.

    written: what stages have written, to be named first. argv: the command line that the next one is made from.
    """
    decision, output = outcome.decision, session.settings.output.output
    assert output is not None
    tried = "remedy" in decision.records
    with session.stages("report"):
        evaluation = None
        if outcome.dense is not None:
            evaluation = results(outcome.dense, outcome.pruned, outcome.unrepaired, outcome.unrecovered)
        if outcome.pruned is not None and evaluation is not None and session.writes:
            outcome.diagnosis = with_cost(session, decision, outcome.diagnosis, evaluation)
        files = _published(session, outcome, evaluation, written, argv, tried) if session.writes else []
        for what_is_left in session.when_complete:
            what_is_left()
    plan, findings = decision.plan, tuple(outcome.diagnosis.findings)
    report = closing_report(outcome.diagnosis, plan, evaluation, None if tried else argv, output, files)
    return Result(output, plan, findings, evaluation, outcome.model, session.settings, tuple(files), report)


def _published(
    session: Session,
    outcome: Outcome,
    evaluation: dict[str, Any] | None,
    written: Sequence[Path],
    argv: Sequence[str],
    tried: bool,
) -> list[Path]:
    """All files of the run, in place. tried: whether remedies were."""
    folder = session.run_folder
    assert folder is not None
    staged = list(written)
    if outcome.repaired is not None:
        staged.append(folder.staging / "analysis" / "reconstruction.json")
    if outcome.recovered is not None:
        staged.append(folder.staging / "analysis" / "recovery.json")
    if evaluation is not None:
        staged.append(write_json(folder.staging / "evaluation" / "evaluation_results.json", evaluation))
    files = [folder.final(path) for path in staged]
    record = _record(session, outcome)
    with convenience("report.html is missing", session.warnings):
        write_run_page(folder.staging, record, argv, files, tried=tried, shown=folder.output)
        files.append(folder.output / "report.html")
    files.append(folder.publish(record | {"facts": record["facts"] | {"warnings": session.warnings}}))
    return files


def _record(session: Session, outcome: Outcome) -> dict[str, Any]:
    return run_record(
        session.asked.record(),
        session.settings.record(),
        session.stages,
        session.device,
        session.windows,
        _facts(session, outcome),
    )


def _facts(session: Session, outcome: Outcome) -> dict[str, Any]:
    """What run.json keeps of measurement, trials, repair and recovery beside timings."""
    decision, repaired, recovered = outcome.decision, outcome.repaired, outcome.recovered
    ranked = decision if isinstance(decision, Ranked) else None
    return {
        "taken": {name: record["taken"] for name, record in decision.records.items() if "taken" in record},
        "windows_used": ranked.importance.windows_used if ranked else 0,
        "windows_skipped": ranked.importance.windows_skipped if ranked else 0,
        "second_order_share": ranked.importance.second_order_share if ranked else None,
        "stability": asdict(ranked.stability) if ranked and ranked.stability else None,
        "repaired_blocks": repaired.num_repaired if repaired else 0,
        "repair_median_change": repaired.median_change if repaired else None,
        "recovery": recovered.facts() if recovered else None,
        "streamed": session.streamed,
        "engine": session.engine.name,
        "cache": session.cache.outcomes,
        "warnings": session.warnings,
    }
