#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli.options import parse_options
from core.errors import PruningError
from run.record import Say, say_on_stderr
from run.rules import idle_notes
from run.settings import Settings

if TYPE_CHECKING:
    from run.result import Result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see the end of ``--help``)."""
    command = parse_options(argv)
    for note in idle_notes(command.settings, command.given):
        say_on_stderr(f"note: {note}")
    try:
        print(run(command.settings, argv=command.argv).report)
    except PruningError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {command.settings.output.output} is not a finished run", file=sys.stderr)
        return 130
    return 0


def run(settings: Settings, *, argv: Sequence[str] = (), say: Say = say_on_stderr, model: Any = None) -> "Result":
    """check → windows → load → importance → scores → plan → refinements → explain → repair → cut → save → prove →
    evaluate → report.

    Every refinement (``--remedy auto``, ``--rounds``, ``--allocate``, ``--protect``) keeps the plan that loses less on
    text that importance did not see. argv: the command line that the next one is made from. model: a dense model that
    is in memory already; it is left as found.
    """
    # Imported here, so that --help and wrong options answer at once.
    from run.before_after import evaluate_dense, evaluate_pruned, evaluate_unrepaired
    from run.decide import decide
    from run.deliver import cut, export, prove, repair, save, write_card
    from run.explain import explain, with_stability
    from run.finish import finish
    from run.refine import refine, refinements
    from run.session import open_session
    from run.surroundings import surroundings

    with surroundings(settings.calibration.seed), open_session(settings, say=say, model=model) as session:
        decision = decide(session)
        for refinement in refinements(settings):
            decision = refine(session, decision, refinement)
        decision = with_stability(session, decision)
        diagnosis, written = explain(session, decision)
        dense = evaluate_dense(session)
        if settings.output.dry_run:
            return finish(session, decision, diagnosis, written=written, dense=dense, argv=argv)
        unrepaired = evaluate_unrepaired(session, decision.plan)
        repaired, report = repair(session, decision.plan)
        small = cut(session, decision.plan)
        delivered = [*save(session, small), *prove(session, small), *export(session)]
        pruned = evaluate_pruned(session, small.in_memory)
        if delivered:
            delivered.append(write_card(session, decision, dense, pruned, repaired))
        return finish(
            session,
            decision,
            diagnosis,
            written=[*delivered, *report, *written],
            dense=dense,
            unrepaired=unrepaired,
            pruned=pruned,
            repaired=repaired,
            model=small.in_memory,
            argv=argv,
        )


if __name__ == "__main__":
    sys.exit(main())
