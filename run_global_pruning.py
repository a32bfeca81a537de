#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from global_pruning_rooms import find_our_rooms

if TYPE_CHECKING:
    from cli.record import Stages

# Word after the program's name -> module whose main(arguments, prog) answers. Without such a word, a model is pruned.
COMMANDS = {"compare": "diagnostics.compare", "gguf": "models.gguf.__main__"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see the end of ``--help``)."""
    try:
        find_our_rooms()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from core.console import console
    from core.program import program_name

    arguments = list(sys.argv[1:] if argv is None else argv)
    with console():
        if arguments and arguments[0] in COMMANDS:
            command = importlib.import_module(COMMANDS[arguments[0]])
            return int(command.main(arguments[1:], f"{program_name()} {arguments[0]}"))
        return prune(arguments)


def prune(arguments: Sequence[str]) -> int:
    from cli.options import parse_options
    from cli.output import RECORD
    from core.failures import exit_code

    options = parse_options(arguments)
    try:
        return exit_code(lambda: run(options))
    except KeyboardInterrupt:
        print(f"interrupted; {options.output} has no {RECORD} and is not a finished run", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> None:
    """Check what needs no heavy import, then carry out what was asked."""
    from cli.record import Stages, resolved
    from cli.together import idle_options
    from core.output import check_output
    from run.folders import writable_folders

    for note in idle_options(options):
        print(f"note: {note}", file=sys.stderr)
    check_output(options.output, options.overwrite)
    with writable_folders() as replaced:
        for note in replaced:
            print(f"note: {note}", file=sys.stderr)
        carry_out(options, resolved(options), Stages())


def carry_out(options: argparse.Namespace, asked: dict[str, Any], stages: "Stages") -> None:
    """check → windows → load → importance → scores → plan → explain → repair → surgery → save → verify → evaluate →
    report.

    With ``--remedy auto`` several plans are tried after the first, and the best is explained and carried out.
    ``--rounds`` plans in steps, ``--allocate searched`` spends the budget by measured loss, ``--protect measured`` caps
    blocks that lose more than promised; each keeps what loses less.
    """
    # Imported here, so that --help and wrong options answer at once.
    from cli.allocate import search_allocation
    from cli.cache import KeptMeasurements
    from cli.deliver import deliver, write_card
    from cli.job import describe, make_deterministic, prepare, quieten_libraries, read_windows
    from cli.measured import ModelOnDemand
    from cli.output import RECORD
    from cli.protect import check_the_plan, look_for_outliers
    from cli.record import resolved, run_record
    from cli.remedy import take_the_best
    from cli.repair import judge_before_repair, repair
    from cli.rounds import in_rounds
    from cli.stability import with_stability
    from cli.steps import decide, explain, facts, judge_dense, judge_pruned
    from cli.trials import HeldOut
    from core.failures import convenience, warn
    from core.files import write_json
    from diagnostics.console import closing_report
    from diagnostics.page.run_page import write_run_page
    from evaluation.evaluate import results
    from pruning.budget import requested_params
    from run.preflight import intent, preflight

    warnings: list[str] = []  # what this run goes without, for run.json
    quieten_libraries()
    with stages("check", quietly=True):
        job = prepare(options)
        make_deterministic(options.seed)
        shape = job.source.architecture
        removed = (
            requested_params(shape, options.pruning_ratio, options.ratio_of)
            if job.plan is None
            else job.plan.removed_params
        )
        lacking = preflight(
            intent(
                options.output,
                params_left=shape.total_params - removed,
                itemsize=job.saved_dtype.itemsize,
                num_groups=len(shape.groups),
                saves=not (options.dry_run or options.no_save_model),
                exports=options.export is not None and not options.dry_run,
                cache=options.cache_dir,
            )
        )
        for sentence in lacking.values():
            warn(sentence, warnings)
    with stages("windows", quietly=True):
        calibration, held_out = read_windows(job, options)
    print(describe(job, options.target), file=sys.stderr)
    kept = KeptMeasurements(job, options, stages, warnings)
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
        diagnosis, written = explain(decision, job, options, warnings, draws="pictures" not in lacking)
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
        known = facts(decision, kept, model.streamed, repaired) | {"warnings": warnings}
        record = run_record(asked, resolved(options), stages, job.device, windows, known)
        tried = "remedy" in decision.records
        with convenience("report.html is missing", warnings):
            written.append(write_run_page(options.output, record, options.argv, written, tried=tried))
        written.append(write_json(options.output / RECORD, record))
    print(closing_report(diagnosis, plan, evaluation, None if tried else options.argv, options.output, written))


if __name__ == "__main__":
    sys.exit(main())
