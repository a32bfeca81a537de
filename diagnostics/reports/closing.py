"""The last words of a run: what it cost, what was found, what to try next, and where everything is."""

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

from core.memory import bytes_text
from core.plan import PruningPlan
from core.program import program_name
from diagnostics.findings.diagnosis import Diagnosis
from diagnostics.findings.finding import Finding
from diagnostics.reports.analysis import requested
from diagnostics.reports.next_command import next_command, only_remedies
from diagnostics.wording import decimal, nats, percent

WIDTH = 100
MISSING = "-"
Row = tuple[str, ...]


def closing_report(
    diagnosis: Diagnosis,
    plan: PruningPlan,
    evaluation: Mapping[str, Any] | None,
    argv: Sequence[str] | None,
    output: Path,
    written: Sequence[Path],
    program: str | None = None,
) -> str:
    """The text a run ends with, without a final newline.

    evaluation: the content of ``evaluation_results.json``; None, or its pruned half None, where not measured.
    argv: the options of this run, None where the remedies were tried already: then no flags are named and no next
    command. output: its folder. written: paths to name, in this order. program: what to type before the options, by
    default as this process was called.
    """
    untried = argv is not None
    sections = [
        table([("", "dense", "pruned", "change"), *metric_rows(sizes(plan), evaluation)]),
        table([("pruning ratio", "requested", "achieved"), *ratio_rows(plan)]),
        "\n".join(
            [
                "Findings",
                *(
                    finding_text(finding, untried or not only_remedies(finding.flags or ""))
                    for finding in diagnosis.findings
                ),
            ]
        ),
        next_step(diagnosis.findings, program or program_name(), argv, output, size_of(plan))
        if argv is not None
        else "",
        "\n".join(["Written", *(shlex.quote(str(path)) for path in written)]) if written else "",
    ]
    return "\n\n".join(section for section in sections if section)


def table(rows: Sequence[Row]) -> str:
    """Left column to the left, all others to the right, two spaces between."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def ratio_rows(plan: PruningPlan) -> list[Row]:
    achieved = {"total": plan.achieved_of_total, "prunable": plan.achieved_of_prunable}
    return [
        (f"of {ratio_of} parameters", percent(requested(plan, ratio_of), 2), percent(value, 2))
        for ratio_of, value in achieved.items()
    ]


def finding_text(finding: Finding, with_flags: bool = True) -> str:
    """Severity, issue and numbers, wrapped under one another; then the flags, on a line of their own."""
    indent = " " * 8
    text = textwrap.fill(
        f"{finding.severity:<8}{finding.issue.replace('_', ' ')}: {finding.description}",
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{text}\n{indent}try {finding.flags}" if finding.flags and with_flags else text


def size_of(plan: PruningPlan) -> list[str]:
    return ["--pruning_ratio", format(Decimal(repr(plan.requested_ratio)), "f"), "--ratio_of", plan.ratio_of]


def next_step(
    findings: Sequence[Finding], program: str, argv: Sequence[str], output: Path, size: Sequence[str] = ()
) -> str:
    """The command for the first finding that has flags; empty where none has."""
    for finding in findings:
        if finding.flags is not None:
            mild = finding.severity == "info"
            lead = "Nothing needs a remedy; if you want to try one" if mild else "Next, try"
            return f"{lead}\n{next_command(program, argv, finding.flags, output, size)}"
    return ""


# What it cost


def sizes(plan: PruningPlan) -> tuple[int, int]:
    """Parameters before and after."""
    return plan.architecture.total_params, plan.architecture.total_params - plan.removed_params


def metric_rows(planned: tuple[float | None, float | None], evaluation: Mapping[str, Any] | None) -> list[Row]:
    """Label, dense, pruned, change. planned: parameters before and after, where the evaluation does not count them."""
    dense, pruned = ((evaluation or {}).get(side) or {} for side in ("dense", "pruned"))
    parameters = dense.get("parameters", planned[0]), pruned.get("parameters", planned[1])
    rows = [
        _row("parameters", *parameters, _count),
        _row("bytes", dense.get("bytes"), pruned.get("bytes"), bytes_text),
    ]
    for name in _keys(dense, pruned, "perplexity"):
        before, after = (_inside(side, "perplexity", name, "perplexity") for side in (dense, pruned))
        rows.append(_row(f"perplexity {name}", before, after, decimal))
        for stage in ("repair", "recovery"):
            cut = _inside(evaluation or {}, f"before_{stage}", "perplexity", name, "perplexity")
            if _is_number(cut):
                label, _, *found = _row(f"  before {stage}", before, cut, decimal)
                rows.append((label, "", *found))
        rows += _distance_rows(_inside(pruned, "distance", name))
    for task in _keys(dense, pruned, "tasks"):
        rows += _task_rows(task, *(_inside(side, "tasks", task) or {} for side in (dense, pruned)))
    rows += _generation_rows(dense.get("generation") or {}, pruned.get("generation") or {})
    for name in _keys(dense, pruned, "latency"):
        if name.endswith("_tokens_per_s"):
            before, after = (_inside(side, "latency", name) for side in (dense, pruned))
            rows.append(_row(f"{name.removesuffix('_tokens_per_s')} tokens/s", before, after, decimal))
    return [row for row in rows if row[1:3] != (MISSING, MISSING)]


def _distance_rows(distance: Any) -> list[Row]:
    """How far the pruned model's predictions are from the dense one's; nothing where that is not known."""
    divergence, agreement = (_inside(distance, key) for key in ("kl_nats_per_token", "top1_agreement"))
    if not (_is_number(divergence) and _is_number(agreement)):
        return []
    return [("  KL from dense", "", nats(divergence), ""), ("  same top token", "", percent(agreement), "")]


def _task_rows(task: str, dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[Row]:
    """One row a metric; fractions as percent with their standard error, the change in points."""
    metrics = [key for key in {**dense, **pruned} if key != "num_items" and "_stderr" not in key]
    return [_share_row(f"{task} {metric}", metric, dense, pruned) for metric in metrics]


def _share_row(label: str, metric: str, dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Row:
    before, after = dense.get(metric), pruned.get(metric)
    known = [value for value in (before, after) if _is_number(value)]
    error = f"{metric}_stderr"
    if not all(0 <= value <= 1 for value in known):
        return _row(label, before, after, decimal)
    change = f"{100 * (known[1] - known[0]):+.1f} points" if len(known) == 2 else MISSING
    return (label, _share(before, dense.get(error)), _share(after, pruned.get(error)), change)


def _generation_rows(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> list[Row]:
    """How much of what each model writes it has written before, and, where any does, how often it comes to an end; of
    several texts also each for itself, for greedy text, where loops show."""
    each = _keys(dense, pruned, "texts")
    rows = []
    for way, names in (("greedy", each if len(each) > 1 else []), ("sampled", [])):
        texts = [_inside(side, way) or {} for side in (dense, pruned)]
        for measure, words in (("repeated_4grams", "repeated"), ("ended", "ended")):
            if measure == "ended" and not any(text.get("ended") for text in texts):
                continue
            rows.append(_share_row(f"{way} text {words}", measure, *texts))
            rows += [
                _share_row(
                    f"  after {name}", measure, *(_inside(side, "texts", name, way) or {} for side in (dense, pruned))
                )
                for name in names
            ]
    return rows


def _share(value: Any, error: Any) -> str:
    if not _is_number(value):
        return MISSING
    return f"{100 * value:.1f} ± {100 * error:.1f} %" if _is_number(error) else percent(value)


def _row(label: str, before: Any, after: Any, text: Any) -> Row:
    first, second = (text(value) if _is_number(value) else MISSING for value in (before, after))
    known = _is_number(before) and _is_number(after) and before != 0
    return (label, first, second, f"{100 * (after / before - 1):+.1f} %" if known else MISSING)


def _keys(dense: Mapping[str, Any], pruned: Mapping[str, Any], field: str) -> list[str]:
    return list({**(dense.get(field) or {}), **(pruned.get(field) or {})})


def _inside(side: Mapping[str, Any], *names: str) -> Any:
    value: Any = side
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_number(value: Any) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"
