#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options."""

import argparse
import sys
from collections.abc import Sequence

from cli.options import parse_options
from cli.output import RECORD
from cli.record import Stages, resolved, run_record
from cli.together import idle_options
from core.errors import PruningError
from core.files import write_json
from core.output import check_output


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
    """check → windows → load → importance → scores → plan → explain → repair → surgery → save → verify → evaluate →
    report.

    With ``--remedy auto`` several plans are tried after the first, and the best is explained and carried out.
    ``--rounds`` plans in steps, ``--allocate searched`` spends the budget by measured loss, ``--protect measured`` caps
    blocks that lose more than promised; each keeps what loses less.
    """
    for note in idle_options(options):
        print(f"note: {note}", file=sys.stderr)
    check_output(options.output, options.overwrite)
    asked, stages = resolved(options), Stages()

    # Imported here, so that --help and wrong options answer at once.
    from cli.allocate import search_allocation
    from cli.cache import KeptMeasurements
    from cli.deliver import deliver, write_card
    from cli.job import describe, make_deterministic, prepare, quieten_libraries, read_windows
    from cli.measured import ModelOnDemand
    from cli.protect import check_the_plan, look_for_outliers
    from cli.remedy import take_the_best
    from cli.repair import judge_before_repair, repair
    from cli.rounds import in_rounds
    from cli.stability import with_stability
    from cli.steps import decide, explain, facts, judge_dense, judge_pruned
    from cli.trials import HeldOut
    from diagnostics.console import closing_report
    from diagnostics.page.run_page import write_run_page
    from evaluation.evaluate import results

    quieten_libraries()
    with stages("check", quietly=True):
        job = prepare(options)
        for note in job.source.notes:
            print(f"note: {note}", file=sys.stderr)
        make_deterministic(options.seed)
    with stages("windows", quietly=True):
        calibration, held_out = read_windows(job, options)
    print(describe(job, options.target), file=sys.stderr)
    kept = KeptMeasurements(job, options, stages)
    model = ModelOnDemand(job, options, stages)
    if not options.dry_run:
        model()  # needed in any case: weights that cannot be loaded are found before an earlier run is cleared

    held_back = HeldOut(model, job, options, calibration)
    job = look_for_outliers(model, job, options, calibration, kept, stages)
    decision = decide(model, job, options, calibration, kept, stages)
    if options.remedy == "auto" and options.plan is None:
        assert calibration is not None
        job, decision = take_the_best(model, job, options, calibration, decision, kept, held_back, stages)
    decision = with_stability(job, options, decision)
    decision = in_rounds(model, job, options, calibration, decision, held_back, stages)
    decision = search_allocation(model, job, options, decision, held_back, stages)
    decision = check_the_plan(model, job, options, decision, held_back, stages)
    plan = decision.plan
    with stages("explain"):
        diagnosis, written = explain(decision, job, options)
    dense, pruned, repaired, unrepaired = judge_dense(model, job, options, held_out, kept, stages), None, None, None

    if not options.dry_run:
        unrepaired = judge_before_repair(model(), job, options, plan, held_out, stages)
        repaired, report = repair(model(), job, options, plan, calibration, stages)
        smaller, delivered = deliver(model.give_away(), job, options, plan, calibration, stages)
        pruned = judge_pruned(smaller, job, options, held_out, stages)
        if delivered:
            delivered.append(write_card(plan, job, options, calibration, dense, pruned, repaired))
        written = [*delivered, *report, *written]

    with stages("report"):
        evaluation = None if dense is None else results(dense, pruned, unrepaired)
        if evaluation is not None:
            written.append(write_json(options.output / "evaluation" / "evaluation_results.json", evaluation))
        windows = {f"evaluation {name}": item for name, item in held_out.items()}
        if calibration is not None:
            windows["calibration"] = calibration
        known = facts(decision, kept, model.streamed, repaired)
        record = run_record(asked, resolved(options), stages, job.device, windows, known)
        tried = "remedy" in decision.records
        written.append(write_run_page(options.output, record, options.argv, written, tried=tried))
        written.append(write_json(options.output / RECORD, record))
    print(closing_report(diagnosis, plan, evaluation, None if tried else options.argv, options.output, written))


if __name__ == "__main__":
    sys.exit(main())
