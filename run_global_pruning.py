#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.options import parse_options
from cli.record import Stages, resolved, run_record
from cli.together import idle_options
from core.errors import PruningError
from core.files import write_json
from core.output import RECORD, readable
from run.folder import RunFolder, claimed
from run.interruption import exit_code, terminations
from run.owned import GGUF, MODEL


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see the end of ``--help``)."""
    options = parse_options(argv)
    try:
        with terminations():
            run(options)
    except PruningError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(interrupted(options.output), file=sys.stderr)
        return exit_code(interrupt)
    return 0


def interrupted(output: Path) -> str:
    """The last line of a run that was asked to end."""
    if (output / RECORD).is_file():
        return f"interrupted; the finished run in {readable(output)} is whole"
    return f"interrupted; {readable(output)} has no {RECORD} and is not a finished run"


def run(options: argparse.Namespace) -> None:
    """Claim the output folder, then run in it: nothing is measured for a folder that cannot be written."""
    for note in idle_options(options):
        print(f"note: {note}", file=sys.stderr)
    writes = [] if options.dry_run or options.no_save_model else [MODEL, *[GGUF] * (options.export == "gguf")]
    with claimed(options.output, overwrite=options.overwrite, inputs=inputs(options), writes=writes) as folder:
        options.staging = folder.staging
        report = run_in(folder, options)
    print(report)


def inputs(options: argparse.Namespace) -> dict[str, str | Path]:
    """What a run reads, by option. A plan is none of it: its run writes the same plan again."""
    named = {
        "--base_model": options.base_model,
        "--dataset": options.dataset,
        "--eval_task_path": options.eval_task_path,
    }
    read = named | {f"--eval_datasets {name}": name for name in options.eval_datasets}
    return {option: value for option, value in read.items() if value}


def run_in(folder: RunFolder, options: argparse.Namespace) -> str:
    """check → windows → load → importance → scores → plan → explain → repair → surgery → save → verify → evaluate →
    report.

    With ``--remedy auto`` several plans are tried after the first, and the best is explained and carried out.
    ``--rounds`` plans in steps, ``--allocate searched`` spends the budget by measured loss, ``--protect measured`` caps
    blocks that lose more than promised; each keeps what loses less. Returns the closing report.
    """
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
        make_deterministic(options.seed)
    with stages("windows", quietly=True):
        calibration, held_out = read_windows(job, options)
    print(describe(job, options.target), file=sys.stderr)
    kept = KeptMeasurements(job, options, stages)
    model = ModelOnDemand(job, options, stages)
    if not options.dry_run:
        model()  # needed in any case: weights that cannot be loaded are found before anything is measured

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
            written.append(write_json(folder.staging / "evaluation" / "evaluation_results.json", evaluation))
        windows = {f"evaluation {name}": item for name, item in held_out.items()}
        if calibration is not None:
            windows["calibration"] = calibration
        known = facts(decision, kept, model.streamed, repaired)
        record = run_record(asked, resolved(options), stages, job.device, windows, known)
        tried = "remedy" in decision.records
        written = [folder.final(path) for path in written]
        page = write_run_page(folder.staging, record, options.argv, written, tried=tried, shown=options.output)
        written += [folder.final(page), folder.publish(record)]
    return closing_report(diagnosis, plan, evaluation, None if tried else options.argv, options.output, written)


if __name__ == "__main__":
    sys.exit(main())
