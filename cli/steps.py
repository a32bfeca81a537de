"""The middle of a run: measure, decide, explain, judge. Each step takes values and returns values."""

import argparse
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cli.cache import KeptMeasurements
from cli.job import Job
from cli.measured import DensePerplexities, ModelOnDemand, importance_of, prior_of
from cli.output import clear_earlier_run
from cli.record import Stages
from core.files import write_json
from core.measures import Importance, Prior, Stability
from core.plan import PruningPlan
from core.windows import TokenWindows
from diagnostics.diagnosis import Diagnosis, diagnose
from diagnostics.measured import Extras
from diagnostics.pictures import draw_pictures
from diagnostics.plan_check import PlanCheck
from diagnostics.remedies import ActiveRemedies
from diagnostics.reports import write_reports
from importance.scoring import Scores, score_groups
from pruning.plan_file import write_plan
from pruning.planning import plan_removal
from pruning.repair_report import RepairReport
from pruning.uniform import plan_uniform


@dataclass(frozen=True)
class Decision:
    """The plan and what led to it; all but the plan are None where a saved one is replayed.

    check: what each block of the plan loses alone, where it was measured. stability: of the ranking by the first
    importance, whatever rounds, caps and searches made of it.
    records: what was tried on the way, as the content of ``analysis/<name>.json``.
    """

    plan: PruningPlan
    importance: Importance | None = None
    prior: Prior | None = None
    scores: Scores | None = None
    check: PlanCheck | None = None
    stability: Stability | None = None
    records: dict[str, Any] = field(default_factory=dict)

    def noting(self, **records: Any) -> "Decision":
        """The same with further records."""
        return replace(self, records=self.records | records)


def decide(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    calibration: TokenWindows | None,
    kept: KeptMeasurements,
    stages: Stages,
) -> Decision:
    """Importance, prior, scores, plan; or the plan that is replayed."""
    if job.plan is not None:
        return Decision(job.plan)
    importance = importance_of(model, job, options, calibration, kept, stages)
    prior = None
    if options.temperature > 0:
        assert calibration is not None
        prior = prior_of(model, job, options, calibration, kept, stages)
    with stages("plan"):
        return plan_with(job, options, importance, prior)


def plan_with(job: Job, options: argparse.Namespace, importance: Importance, prior: Prior | None) -> Decision:
    """Scores and plan under the job's transforms and limits; numpy only."""
    groups = job.source.architecture.groups
    scores = score_groups(groups, importance.values, job.transforms, frozen=job.frozen, prior=prior)
    return Decision(plan_from(job, options, scores), importance, prior, scores)


def plan_from(job: Job, options: argparse.Namespace, scores: Scores, ratio: float | None = None) -> PruningPlan:
    """The plan of a ranking under the job's limits. ratio: another than ``--pruning_ratio``."""
    architecture = job.source.architecture
    asked = {
        "ratio": options.pruning_ratio if ratio is None else ratio,
        "ratio_of": options.ratio_of,
        "limits": job.limits,
    }
    if job.limits.uniform:
        return plan_uniform(architecture, scores.score, scores.order, **asked)
    return plan_removal(architecture, scores.order, **asked)


def explain(decision: Decision, job: Job, options: argparse.Namespace) -> tuple[Diagnosis, list[Path]]:
    """Diagnose the plan and write plan, reports and pictures, in place of an earlier run's; returns their paths."""
    plan, importance, scores = decision.plan, decision.importance, decision.scores
    diagnosis = diagnosis_of(job, options, decision)
    clear_earlier_run(options.output)
    written = [write_plan(options.output / "analysis" / "pruning_plan.json", plan)]
    for name, content in decision.records.items():
        written.append(write_json(options.output / "analysis" / f"{name}.json", content))
    written += write_reports(options.output / "analysis", diagnosis, plan, importance, scores)
    written += draw_pictures(options.output / "visualization", diagnosis, plan, importance, scores)
    return diagnosis, written


def diagnosis_of(job: Job, options: argparse.Namespace, decision: Decision) -> Diagnosis:
    architecture, active = job.source.architecture, active_remedies(job, options)
    importance, scores = decision.importance, decision.scores
    extras = Extras(outliers=job.outliers, check=decision.check, stability=decision.stability)
    return diagnose(architecture, importance, scores, decision.plan, decision.prior, job.frozen, active, extras)


def active_remedies(job: Job, options: argparse.Namespace) -> ActiveRemedies:
    return ActiveRemedies(
        clip=job.transforms.clip,
        normalise=job.transforms.normalise,
        temperature=job.transforms.temperature,
        max_block_ratio=job.limits.max_block_ratio,
        criterion=options.importance_method,
        clip_percentiles=(job.transforms.clip_low, job.transforms.clip_high),
    )


def judge_dense(
    model: ModelOnDemand,
    job: Job,
    options: argparse.Namespace,
    held_out: dict[str, TokenWindows],
    kept: KeptMeasurements,
    stages: Stages,
) -> dict[str, Any] | None:
    """Measure the dense model, or take its perplexities from an earlier run; None where nothing is measured."""
    if not options.measures:
        return None
    perplexities = DensePerplexities(held_out, kept)
    if options.measures == {"ppl"} and not perplexities.missing:
        params = job.source.architecture.total_params
        measured: dict[str, Any] = {}
        sizes = {"parameters": params, "bytes": params * job.saved_dtype.itemsize}
        result: dict[str, Any] = sizes | {"perplexity": measured, "tasks": {}, "latency": None}
    else:
        result = judge(model(), "dense", job, options, perplexities.missing, stages)
        measured = result["perplexity"]
    result["perplexity"] = perplexities.completed(measured)
    _say_what_is_not_finite(result, "dense")
    return result


def judge_pruned(
    model: Any, job: Job, options: argparse.Namespace, held_out: dict[str, TokenWindows], stages: Stages
) -> dict[str, Any] | None:
    """The same of the pruned model, which no cache knows."""
    if not options.measures:
        return None
    result = judge(model, "pruned", job, options, held_out, stages)
    _say_what_is_not_finite(result, "pruned")
    return result


def judge(
    model: Any,
    label: str,
    job: Job,
    options: argparse.Namespace,
    held_out: dict[str, TokenWindows],
    stages: Stages,
) -> dict[str, Any]:
    """What ``--run_evaluation`` asks for, measured on one model."""
    from evaluation.evaluate import evaluate

    with stages(f"evaluate {label}"):
        return evaluate(
            model,
            job.source.tokenizer,
            held_out,
            task_names=options.tasks,
            task_path=options.eval_task_path,
            measures=options.measures,
            batch_size=options.batch_size,
            seed=options.seed,
            label=label,
            stored_as=job.saved_dtype,
        )


def _say_what_is_not_finite(result: dict[str, Any], label: str) -> None:
    from evaluation.evaluate import not_finite

    for sentence in not_finite(result, label):
        print(f"finding: {sentence}", file=sys.stderr)


def facts(decision: Decision, kept: KeptMeasurements, streamed: bool, repaired: RepairReport | None) -> dict[str, Any]:
    """What run.json keeps of measurement, trials and repair beside timings."""
    importance = decision.importance
    return {
        "taken": {name: record["taken"] for name, record in decision.records.items() if "taken" in record},
        "windows_used": importance.windows_used if importance else 0,
        "windows_skipped": importance.windows_skipped if importance else 0,
        "second_order_share": importance.second_order_share if importance else None,
        "stability": asdict(decision.stability) if decision.stability else None,
        "repaired_blocks": repaired.num_repaired if repaired else 0,
        "repair_median_change": repaired.median_change if repaired else None,
        "streamed": streamed,
        "cache": kept.outcomes,
    }
