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
    folder, decision = session.run_folder, outcome.decision
    assert folder is not None
    staged, tried = list(written), "remedy" in decision.records
    if outcome.repaired is not None:
        staged.append(folder.staging / "analysis" / "reconstruction.json")
    if outcome.recovered is not None:
        staged.append(folder.staging / "analysis" / "recovery.json")
    with session.stages("report"):
        evaluation = None
        if outcome.dense is not None:
            evaluation = results(outcome.dense, outcome.pruned, outcome.unrepaired, outcome.unrecovered)
        if outcome.pruned is not None and evaluation is not None:
            outcome.diagnosis = with_cost(session, decision, outcome.diagnosis, evaluation)
        if evaluation is not None:
            staged.append(write_json(folder.staging / "evaluation" / "evaluation_results.json", evaluation))
        files = [folder.final(path) for path in staged]
        record = _record(session, outcome)
        with convenience("report.html is missing", session.warnings):
            write_run_page(folder.staging, record, argv, files, tried=tried, shown=folder.output)
            files.append(folder.output / "report.html")
        files.append(folder.publish(record | {"facts": record["facts"] | {"warnings": session.warnings}}))
    plan, findings = decision.plan, tuple(outcome.diagnosis.findings)
    report = closing_report(outcome.diagnosis, plan, evaluation, None if tried else argv, folder.output, files)
    return Result(folder.output, plan, findings, evaluation, outcome.model, session.settings, tuple(files), report)


def _record(session: Session, outcome: Outcome) -> dict[str, Any]:
    return run_record(
        session.asked.record(),
        session.settings.record(),
        session.stages,
        session.device,
        _windows(session),
        _facts(session, outcome),
    )


def _windows(session: Session) -> dict[str, Any]:
    windows = {f"evaluation {name}": item for name, item in session.evaluation.items()}
    return windows if session.calibration is None else windows | {"calibration": session.calibration}


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
        "cache": session.cache.outcomes,
        "warnings": session.warnings,
    }
