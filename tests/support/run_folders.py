"""Folders as finished runs leave them, made from plans whose rates can be read off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diagnostics_cases import importance_of, plan_of, scores_of

from core.files import write_json
from core.plan import PruningPlan
from diagnostics.findings.diagnosis import diagnose
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.reports.analysis import write_reports
from pruning.plan_file import write_plan

OPTIONS = {
    "base_model": "some/model",
    "importance_method": "taylor",
    "dataset": "pydoc",
    "temperature": 0.0,
    "enable_grad_norm": False,
    "dry_run": False,
    "plan": None,
    "freeze_first_n_layers": 0,
    "freeze_last_n_layers": 0,
}


def side(perplexity: float, accuracy: float | None = None) -> dict[str, Any]:
    text = {"source": "a text", "seq_len": 8, "num_tokens": 70}
    found: dict[str, Any] = {
        "perplexity": {"pydoc": {"perplexity": perplexity, "nll_nats_per_token": float(np.log(perplexity))} | text}
    }
    return found | ({} if accuracy is None else {"tasks": {"quiz": {"acc": accuracy, "acc_stderr": 0.02}}})


def write_run(
    folder: Path,
    points: Sequence[int] | PruningPlan,
    perplexity: float | None = 12.0,
    *,
    options: Mapping[str, Any] | None = None,
    text: str = "abc",
    before: Mapping[str, float] | None = None,
    **plan_changes: Any,
) -> Path:
    """A run whose layer l lost ``points[l]`` percent; dense perplexity 10. perplexity None: not evaluated. before: its
    perplexity before a stage (``repair``, ``recovery``)."""
    plan = points if isinstance(points, PruningPlan) else plan_of(points, **plan_changes)
    importance, scores = importance_of(plan), scores_of(plan)
    frozen = np.zeros(len(plan.groups), dtype=bool)
    diagnosis = diagnose(plan.architecture, importance, scores, plan, None, frozen, ActiveRemedies())
    write_plan(folder / "analysis" / "pruning_plan.json", plan)
    write_reports(folder / "analysis", diagnosis, plan, importance, scores)
    if perplexity is not None:
        far = {"pydoc": {"kl_nats_per_token": perplexity / 100, "top1_agreement": 0.75}}
        writes = {"generation": {"greedy": {"repeated_4grams": 0.25, "ended": None, "length": perplexity}}}
        results = {"dense": side(10.0, 0.5) | writes, "pruned": side(perplexity, 0.4) | writes | {"distance": far}}
        results |= {f"before_{stage}": side(value) for stage, value in (before or {}).items()}
        write_json(folder / "evaluation" / "evaluation_results.json", results)
    write_json(folder / "run.json", record(text, **(options or {})))
    return folder


def record(text: str = "abc", **options: Any) -> dict[str, Any]:
    windows = {"evaluation pydoc": {"sha256": text, "source": "a text"}}
    return {"schema_version": 1, "options": OPTIONS | options, "windows": windows, "timings_s": {"plan": 0.5}}
