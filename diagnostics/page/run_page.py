"""The page of one run: what was removed, why, what it cost, what to do next."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from core.arguments import without
from core.files import write_text
from core.memory import bytes_text
from core.program import program_name
from diagnostics.page.headline import headline
from diagnostics.page.heat import layers_by_kind
from diagnostics.page.render import render
from diagnostics.page.why import reasons
from diagnostics.reports.closing import MISSING, metric_rows
from diagnostics.reports.next_command import beside, next_command, only_remedies
from diagnostics.run_folder import Run, at, items, number, read_run
from diagnostics.wording import percent

NOT_MEASURED = "not measured"
NEVER_AGAIN = ("--dry_run", "--output", "--overwrite", "--plan")  # of a command that carries a plan out


@dataclass(frozen=True)
class Step:
    """One thing to do or to know. command: to be copied, None where there is nothing to run."""

    title: str
    severity: str
    text: str
    advice: str
    command: str | None


def write_run_page(
    folder: Path,
    record: Mapping[str, Any],
    argv: Sequence[str],
    written: Sequence[Path],
    program: str | None = None,
    *,
    tried: bool = False,
    shown: Path | None = None,
) -> Path:
    """Write ``<folder>/report.html`` from the files in ``folder``; returns its path.

    record: the content of run.json, which is written later. argv: the options of this run, for the commands.
    program: what to type before them, by default as this process was called. written: what the run wrote, linked where
    it lies inside the folder. tried: whether the run itself tried the remedies (``--remedy auto``); then findings come
    without a command. shown: the folder's name for the reader, where it is still to be moved there; ``written`` lies in
    it.
    """
    run = replace(read_run(folder), record=dict(record), folder=shown or folder)
    return write_text(folder / "report.html", run_page(run, argv, written, program or program_name(), tried))


def run_page(run: Run, argv: Sequence[str], written: Sequence[Path], program: str, tried: bool = False) -> str:
    """The HTML text."""
    why = reasons(run)
    values = {
        "title": headline(run),
        "subtitle": _subtitle(run),
        "heat": layers_by_kind(run),
        "why": why,
        "metrics": _metrics(run),
        "ratios": _ratios(run),
        "proof": _proof(run),
        "steps": next_steps(run, argv, program, tried),
        "details": _details(run),
        "files": [path.relative_to(run.folder).as_posix() for path in written if path.is_relative_to(run.folder)],
    }
    return render("run.html", values)


def next_steps(run: Run, argv: Sequence[str], program: str, tried: bool = False) -> list[Step]:
    """The findings as they stand in gradient_diagnosis.json; a dry run begins with carrying its plan out."""
    steps = [_carry_out(run, argv, program)] if run.option("dry_run") is True and run.plan else []
    for found in items(run.diagnosis, "diagnosis"):
        flags = at(found, "flags")
        open_flags = flags if isinstance(flags, str) and not tried else None
        command = next_command(program, argv, open_flags, run.folder, _size(run)) if open_flags else None
        title = str(at(found, "issue") or "finding").replace("_", " ")
        texts = [str(at(found, key) or "") for key in ("severity", "description", "recommendation")]
        texts = [text.replace(" %", "\N{NO-BREAK SPACE}%") for text in texts]
        if tried and isinstance(flags, str) and only_remedies(flags):
            texts[2] = "--remedy auto has tried this; see analysis/remedy.json."
        steps.append(Step(title[:1].upper() + title[1:], texts[0], texts[1], texts[2], command))
    return [*steps, *_comparison(run, steps, program)]


def _carry_out(run: Run, argv: Sequence[str], program: str) -> Step:
    plan, output = run.folder / "analysis" / "pruning_plan.json", beside(run.folder, "pruned")
    options = [*without(argv, NEVER_AGAIN), "--plan", str(plan), "--output", output]
    text = "This was a dry run: there is a plan, but no pruned model."
    return Step("Carry out the plan", "info", text, "", f"{program} {shlex.join(options)}")


def _comparison(run: Run, steps: Sequence[Step], program: str) -> list[Step]:
    """How to judge the first remedy against this run, once it has been tried."""
    tried = next((step.command for step in steps if step.command), None)
    if tried is None:
        return []
    other = shlex.split(tried)[-1]
    text = "A remedy is advice until held-out loss at equal size confirms it. When the run above is done:"
    return [Step("Compare both", "info", text, "", f"{program} compare {shlex.join([str(run.folder), other])}")]


def _size(run: Run) -> list[str]:
    """The options that ask for the size of this run's plan; none where the files do not tell."""
    ratio, ratio_of = number(run.comparison, "budget", "requested_ratio"), at(run.comparison, "budget", "ratio_of")
    return [] if ratio is None else ["--pruning_ratio", format(Decimal(repr(ratio)), "f"), "--ratio_of", str(ratio_of)]


def _subtitle(run: Run) -> str:
    model, criterion, data = (run.option(name) for name in ("base_model", "importance_method", "dataset"))
    kind, replayed = at(run.plan, "base", "model_type"), run.option("plan")
    parts = [
        f"{model} ({kind})" if model and kind else str(model or kind or "model not known"),
        f"replayed {replayed}" if replayed else f"ranked by {criterion}" if criterion else "",
        f"calibrated on {data}" if data and at(run.record, "windows", "calibration") else "",
    ]
    return " · ".join(part for part in parts if part)


def _metrics(run: Run) -> list[tuple[str, ...]]:
    rows = metric_rows(run.parameters, run.evaluation)
    return [tuple(NOT_MEASURED if cell == MISSING else cell for cell in row[:3]) + row[3:] for row in rows]


def _ratios(run: Run) -> list[tuple[str, str, str]]:
    budget = at(run.comparison, "budget")
    rows = []
    for name in ("total", "prunable"):
        values = (number(budget, f"{what}_of_{name}") for what in ("requested", "achieved"))
        requested, achieved = (NOT_MEASURED if value is None else percent(value, 2) for value in values)
        rows.append((f"of {name} parameters", requested, achieved))
    return rows


def _proof(run: Run) -> str:
    checks, passed = items(run.verification, "checks"), at(run.verification, "passed")
    if not checks or passed is None:
        return f"The saved model was not verified{_because(run)}."
    errors = [error for check in checks if (error := number(check, "error")) is not None]
    largest = f", largest error {max(errors):.1e}" if errors else ""
    return f"The saved model {'passed' if passed is True else 'FAILED'} its {len(checks)} checks{largest}."


def _because(run: Run) -> str:
    reasons = {str(why) for _, why in _items(at(run.verification, "not_run"))}
    return f" ({', '.join(sorted(reasons))})" if reasons else ""


def _details(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """How it was run, by heading; as run.json has it."""
    timings, memory = at(run.record, "timings_s"), at(run.record, "peak_memory_bytes")
    sections = {
        "Options": [(f"--{name}", _plain(value)) for name, value in _items(at(run.record, "options"))],
        "Windows": [(name, _plain(at(value, "source"))) for name, value in _items(at(run.record, "windows"))],
        "Seconds by stage": [(name, _plain(value)) for name, value in _items(timings)],
        "Largest memory": [(name, bytes_text(value)) for name, value in _items(memory) if number(value) is not None],
        "Environment": [
            (name, _plain(value)) for name, value in _items(at(run.record, "environment")) if name != "packages"
        ],
        "Packages": [(name, _plain(value)) for name, value in _items(at(run.record, "environment", "packages"))],
    }
    return [(title, rows) for title, rows in sections.items() if rows]


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
