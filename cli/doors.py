"""From a command line to an exit code: parse, say what cannot act, run, print the report."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli.options import parse_options
from core.failures import exit_code
from core.output import RECORD, readable
from core.say import heard_by, note, say_on_stderr
from run import interruption
from run.option_rules import idle_notes


def prune_command(arguments: Sequence[str], run: Callable[..., Any]) -> int:
    """``global-pruning --base_model …``. run: ``run_global_pruning.run``."""
    command = parse_options(arguments)

    def carry_out() -> None:
        for sentence in idle_notes(command.settings, command.given):
            note(sentence)
        print(run(command.settings, argv=command.argv).report)

    try:
        with interruption.terminations(), heard_by(say_on_stderr):
            return exit_code(carry_out)
    except KeyboardInterrupt as interrupt:
        assert command.settings.output.output is not None
        print(interrupted(command.settings.output.output), file=sys.stderr)
        return interruption.exit_code(interrupt)


def other_command(module: str, arguments: Sequence[str], prog: str) -> int:
    """``global-pruning verify …`` and its like. module: its ``main(arguments, prog)`` returns the exit code.

    A request to end, by Ctrl-C or SIGTERM, is a line here too, and what was half written goes.
    """
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
    return f"interrupted; {readable(output)} has no {RECORD} and is not a finished run"
