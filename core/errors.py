"""The exception tree. A user meets these as one line on stderr and an exit code; anything else is a bug.

PruningError                 expected failure, one line, exit code 2
├── UsageError               an option's value cannot work, alone or with the others
├── ModelError               the model, its family, its weights or its tokenizer cannot be used
├── DataError                a calibration or evaluation dataset cannot be used
├── BudgetError              the requested ratio cannot be reached above the floors
├── PlanError                a saved plan does not fit this model
├── OutputError              the output folder cannot be used
├── NumericalError           NaN or Inf met while measuring (exit code 3)
└── VerificationError        the saved model does not compute what it should (exit code 4)
"""

import re


class PruningError(Exception):
    """Expected failure; ``str(error)`` is the one line a user reads: the value, the bound, the next step."""

    exit_code = 2


class UsageError(PruningError):
    pass


class ModelError(PruningError):
    pass


class DataError(PruningError):
    pass


class BudgetError(PruningError):
    pass


class PlanError(PruningError):
    pass


class OutputError(PruningError):
    pass


class NumericalError(PruningError):
    exit_code = 3


class VerificationError(PruningError):
    exit_code = 4


def reason_of(error: BaseException, limit: int = 300) -> str:
    """What another library's exception says, in one line of at most ``limit`` characters.

    All lines count, since the first is often a heading and the reason stands below it; colours and rules are left out.
    An exception without words is named by its type, and so is a KeyError, whose words are the key alone.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    words = ""
    for line in (line for line in lines if re.search(r"\w", line)):
        separator = "" if not words else " " if words[-1] in ".:;,!?" else "; "
        words += separator + line
    if not words:
        return type(error).__name__
    if isinstance(error, LookupError | AssertionError):
        words = f"{type(error).__name__}: {words}"
    return words if len(words) <= limit else words[: limit - 1].rsplit(" ", 1)[0] + "…"
