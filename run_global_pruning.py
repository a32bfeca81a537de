#!/usr/bin/env python3
"""Global structured pruning of a Hugging Face causal LM, from a shell. ``--help`` lists the options."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from global_pruning_rooms import find_our_rooms

if TYPE_CHECKING:
    from run.result import Result
    from run.settings import Settings

# Word after the program's name -> module whose main(arguments, prog) answers. Without such a word, a model is pruned.
COMMANDS = {"compare": "cli.compare", "gguf": "cli.gguf", "verify": "cli.verify"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see the end of ``--help``)."""
    try:
        find_our_rooms()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from cli.doors import other_command, prune_command
    from core.console import console
    from core.program import program_name

    arguments = list(sys.argv[1:] if argv is None else argv)
    with console():
        if arguments and arguments[0] in COMMANDS:
            return other_command(COMMANDS[arguments[0]], arguments[1:], f"{program_name()} {arguments[0]}")
        return prune_command(arguments, run)


def run(settings: "Settings", *, argv: Sequence[str] = (), model: Any = None, tokenizer: Any = None) -> "Result":
    """check → windows → load → importance → scores → plan → refinements → explain → text to distil on → repair → cut →
    recover → save → prove → evaluate → report.

    Every refinement (``--remedy auto``, ``--rounds``, ``--allocate``, ``--protect``) keeps the plan that loses less on
    text that importance did not see. argv: the command line that the next one is made from. model: a dense model that
    is in memory already, with its tokenizer; it is left as found.
    """
    # Imported here, so that --help and wrong options answer at once.
    from run.before_after import evaluate_dense, evaluate_pruned, evaluate_unrecovered, evaluate_unrepaired
    from run.decide import decide
    from run.deliver import cut, export, prove, repair, save, write_card
    from run.explain import explain, with_stability
    from run.finish import finish
    from run.opening import open_session
    from run.recover import recover, text_to_distil
    from run.refine import refine, refinements
    from run.result import Outcome

    with open_session(settings, model=model, tokenizer=tokenizer) as session:
        decision = decide(session)
        for refinement in refinements(settings):
            decision = refine(session, decision, refinement)
        decision = with_stability(session, decision)
        diagnosis, written = explain(session, decision)
        outcome = Outcome(decision, diagnosis, dense=evaluate_dense(session))
        if not settings.output.dry_run:
            outcome.unrepaired = evaluate_unrepaired(session, decision.plan)
            text = text_to_distil(session, decision.plan)
            outcome.repaired = repair(session, decision.plan)
            small = cut(session, decision.plan)
            outcome.unrecovered = evaluate_unrecovered(session, small.model)
            small, outcome.recovered = recover(session, small, text)
            delivered = [*save(session, small), *prove(session, small), *export(session)]
            outcome.model = small.in_memory
            outcome.pruned = evaluate_pruned(session, small.model)
            written = [*delivered, *write_card(session, outcome), *written]
        return finish(session, outcome, written, argv)


if __name__ == "__main__":
    sys.exit(main())
