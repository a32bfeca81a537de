"""Between the plan and surgery: repair what will be left, where the options ask for it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cli.job import Job
from cli.record import Stages
from core.plan import PruningPlan
from core.windows import TokenWindows
from models.architecture import decoder_layers
from models.reference import without_removed_groups
from pruning.repair import RepairSettings
from pruning.repair import repair as repair_model
from pruning.repair_report import RepairReport, write_repair_report


def judge_before_repair(
    model: Any,
    job: Job,
    options: argparse.Namespace,
    plan: PruningPlan,
    held_out: dict[str, TokenWindows],
    stages: Stages,
) -> dict[str, Any] | None:
    """{"perplexity": {dataset: ...}} of the pruned model as it would be without the repair: its groups are silenced by
    hooks. None where nothing is repaired or no perplexity is asked for. The model is left as found."""
    from evaluation.perplexity import perplexity

    if not (options.reconstructs and held_out):
        return None
    size, family = options.batch_size, job.source.family
    with stages("evaluate before repair"), without_removed_groups(decoder_layers(model, family), family, plan):
        found = {
            name: perplexity(model, windows, batch_size=size, description=f"before repair: perplexity on {name}")
            for name, windows in held_out.items()
        }
    return {"perplexity": found}


def asked_repair(job: Job, options: argparse.Namespace) -> RepairSettings:
    return RepairSettings(
        target=options.reconstruct_target,
        text=options.reconstruct_text,
        modules=options.reconstruct_modules,
        batch_size=options.batch_size,
        stored_dtype=job.saved_dtype,
    )


def repair(
    model: Any,
    job: Job,
    options: argparse.Namespace,
    plan: PruningPlan,
    calibration: TokenWindows | None,
    stages: Stages,
) -> tuple[RepairReport | None, list[Path]]:
    """Refit ``model`` in place and write the report; (None, []) where nothing was asked for. Surgery comes next."""
    if not options.reconstructs:
        return None, []
    assert calibration is not None  # Job.needs_text
    with stages("repair"):
        done = repair_model(model, job.source.family, plan, calibration, asked_repair(job, options))
    print(done.line(), file=sys.stderr)
    return done, [write_repair_report(options.output / "analysis" / "reconstruction.json", done)]
