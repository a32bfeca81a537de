"""From a command line to an exit code: parse, say what cannot act, run, print the report."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli.options import parse_options
from core import ranks
from core.collection import collected_later
from core.failures import exit_code
from core.output import RECORD, readable
from core.say import heard_by, note, say_on_stderr, silent
from run import interruption
from run.option_rules import idle_notes


def prune_command(arguments: Sequence[str], run: Callable[..., Any]) -> int:
    """``global-pruning --base_model …``, in one process or in those that ``torchrun`` started, of which the first
    speaks. run: ``run_global_pruning.run``."""
    with ranks.one_speaks_on_each_machine():
        command = parse_options(arguments)

    def carry_out() -> None:
        ranks.meet()
        with heard_by(say_on_stderr if ranks.is_first() else silent):
            for sentence in idle_notes(command.settings, command.given):
                note(sentence)
            report = run(command.settings, argv=command.argv).report
        if ranks.is_first():
            print(report)

    try:
        with interruption.terminations(), collected_later():
            code = exit_code(carry_out)
    except KeyboardInterrupt as interrupt:
        assert command.settings.output.output is not None
        if ranks.speaks():
            print(interrupted(command.settings.output.output), file=sys.stderr)
        code = interruption.exit_code(interrupt)
    except Exception:
        ranks.end_by_bug()
        raise
    ranks.part(code)
    return code


def other_command(module: str, arguments: Sequence[str], prog: str) -> int:
    """``global-pruning verify …`` and its like. module: its ``main(arguments, prog)`` returns the exit code.

    A request to end, by Ctrl-C or SIGTERM, is a line here too, and what was half written goes.
    """
    if ranks.started().count > 1:
        with ranks.one_speaks_on_each_machine():
            print(f"error: {prog} works in one process; call it without torchrun", file=sys.stderr)
            sys.exit(2)
    try:
        with interruption.terminations():
            return int(importlib.import_module(module).main(arguments, prog))
    except KeyboardInterrupt as interrupt:
        print("interrupted; nothing was finished", file=sys.stderr)
        return interruption.exit_code(interrupt)


def interrupted(output: Path) -> str:
    """The last line of a run that was asked to end."""
    if (output / RECORD).is_file():
        return f"interrupted; the finished run in {readable(output)} is complete"
    if not output.exists():
        return f"interrupted; nothing was written to {readable(output)}"
    return f"interrupted; {readable(output)} has no {RECORD} and is not a finished run"
