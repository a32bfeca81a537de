"""Between the plan and surgery: repair what will be left, where the options ask for it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cli.job import Job
from cli.record import Stages
from core.plan import PruningPlan
from core.windows import TokenWindows
from pruning.reconstruction import Reconstruction, reconstruct, write_reconstruction


def repair(
    model: Any,
    job: Job,
    options: argparse.Namespace,
    plan: PruningPlan,
    calibration: TokenWindows | None,
    stages: Stages,
) -> tuple[Reconstruction | None, list[Path]]:
    """Refit ``model`` in place and write the report; (None, []) where nothing was asked for. Surgery comes next."""
    if not options.reconstructs:
        return None, []
    assert calibration is not None  # Job.needs_text
    with stages("repair"):
        done = reconstruct(
            model,
            job.source.family,
            plan,
            calibration,
            target=options.reconstruct_target,
            batch_size=options.batch_size,
            stored_dtype=job.saved_dtype,
        )
    print(done.line(), file=sys.stderr)
    return done, [write_reconstruction(options.output / "analysis" / "reconstruction.json", done)]
