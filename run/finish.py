"""The end of a run: the evaluation, the page, the record, and what the caller gets."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.failures import convenience
from core.files import write_json
from diagnostics.console import closing_report
from diagnostics.diagnosis import Diagnosis
from diagnostics.page.run_page import write_run_page
from evaluation.evaluate import results
from pruning.reconstruction import Reconstruction
from run.decision import Decision, Ranked
from core.output import RECORD
from run.record import run_record
from run.result import Result
from run.session import Session


def finish(
    session: Session,
    decision: Decision,
    diagnosis: Diagnosis,
    *,
    written: Sequence[Path],
    dense: dict[str, Any] | None,
    unrepaired: dict[str, Any] | None = None,
    pruned: dict[str, Any] | None = None,
    repaired: Reconstruction | None = None,
    model: Any = None,
    argv: Sequence[str] = (),
) -> Result:
    """Write what is left to write, run.json last. argv: the command line that the next one is made from."""
    files, tried = list(written), "remedy" in decision.records
    with session.stages("report"):
        evaluation = None if dense is None else results(dense, pruned, unrepaired)
        if evaluation is not None:
            files.append(write_json(session.folder / "evaluation" / "evaluation_results.json", evaluation))
        record = run_record(
            session.asked.record(),
            session.settings.record(),
            session.stages,
            session.device,
            _windows(session),
            _facts(session, decision, repaired),
        )
        with convenience("report.html is missing", session.warnings):
            files.append(write_run_page(session.folder, record, argv, files, tried=tried))
        files.append(write_json(session.folder / RECORD, record))
    plan, output = decision.plan, session.folder
    report = closing_report(diagnosis, plan, evaluation, None if tried else argv, output, files)
    findings = tuple(diagnosis.findings)
    return Result(output, plan, findings, evaluation, model, session.settings, tuple(files), report)


def _windows(session: Session) -> dict[str, Any]:
    windows = {f"evaluation {name}": item for name, item in session.evaluation.items()}
    return windows if session.calibration is None else windows | {"calibration": session.calibration}


def _facts(session: Session, decision: Decision, repaired: Reconstruction | None) -> dict[str, Any]:
    """What run.json keeps of measurement, trials and repair beside timings."""
    ranked = decision if isinstance(decision, Ranked) else None
    return {
        "taken": {name: record["taken"] for name, record in decision.records.items() if "taken" in record},
        "windows_used": ranked.importance.windows_used if ranked else 0,
        "windows_skipped": ranked.importance.windows_skipped if ranked else 0,
        "second_order_share": ranked.importance.second_order_share if ranked else None,
        "stability": asdict(ranked.stability) if ranked and ranked.stability else None,
        "repaired_blocks": repaired.num_repaired if repaired else 0,
        "repair_median_change": repaired.median_change if repaired else None,
        "streamed": session.streamed,
        "cache": session.cache.outcomes,
        "warnings": session.warnings,
    }
