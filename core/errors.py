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
