#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options."""

import argparse
import sys
from collections.abc import Sequence

from cli.options import idle_options, parse_options
from cli.output import RECORD, check_output
from cli.record import Stages, resolved, run_record
from core.errors import PruningError
from core.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see the end of ``--help``)."""
    options = parse_options(argv)
    try:
        run(options)
    except PruningError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {options.output} has no {RECORD} and is not a finished run", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """check → windows → load → importance → scores → plan → explain → surgery → save → evaluate → report."""
    for note in idle_options(options):
        print(f"note: {note}", file=sys.stderr)
    check_output(options.output, options.overwrite)
    stages = Stages()

    # Imported here, so that --help and wrong options answer at once.
    with stages("check"):
        from cli.job import describe, make_deterministic, prepare, quieten_libraries, read_windows
        from cli.steps import decide, explain, facts, judge_with
        from diagnostics.console import closing_report
        from evaluation.evaluate import write_results
        from models.loading import load_model
        from models.narrow import empty_narrow_model
        from models.saving import save_checkpoint
        from pruning.surgery import operate

        quieten_libraries()
        job = prepare(options)
        make_deterministic(options.seed)
    print(describe(job), file=sys.stderr)
    with stages("windows"):
        calibration, held_out = read_windows(job, options)
    with stages("load model"):
        model = load_model(job.source, job.device, job.dtype)

    decision = decide(model, job, options, calibration, stages)
    plan, family = decision.plan, job.source.family
    with stages("explain"):
        diagnosis, written = explain(decision, job, options)
    judge = judge_with(job, options, held_out, stages)
    dense, pruned = judge(model, "dense"), None

    if not options.dry_run:
        with stages("surgery"):
            model = operate(model, empty_narrow_model(model, family, plan), family, plan)
        if not options.no_save_model:
            with stages("save"):
                folder = options.output / "model"
                written.insert(0, save_checkpoint(model, family, job.source.tokenizer, folder, job.saved_dtype))
        pruned = judge(model, "pruned")

    with stages("report"):
        if dense is not None:
            written.append(write_results(options.output / "evaluation" / "evaluation_results.json", dense, pruned))
        windows = {f"evaluation {name}": item for name, item in held_out.items()}
        if calibration is not None:
            windows["calibration"] = calibration
        record = run_record(resolved(options), stages, job.device, windows, facts(decision))
        written.append(write_json(options.output / RECORD, record))
    results = {"dense": dense, "pruned": pruned}
    print(closing_report(diagnosis, plan, results, options.argv, options.output, written))


if __name__ == "__main__":
    sys.exit(main())
