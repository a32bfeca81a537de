"""Global structured pruning of Hugging Face causal language models, from Python.

    import global_pruning as gp

    result = gp.prune("demo", ratio=0.2, dataset="pydoc", output="results/nb")   # everything the command does

    session = gp.open("demo", dataset="pydoc")                                     # or step by step
    scores = session.score("taylor", normalise="log")
    plan = session.plan(scores, ratio=0.3)                                         # cheap: many plans from one pass
    small = session.prune(plan)                                                    # repaired and cut
    session.save(small, "results/nb/model")                                        # saved and proved

Options carry the names of the command line (``docs/options.md``). Errors are ``PruningError`` and its kinds: one line
that names the value, the bound and the next step. Importing this module imports no torch; nothing that a call changes
in the process (seeds, warnings, logging, determinism) outlives it. Calls from several threads take turns.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from global_pruning_rooms import find_our_rooms

find_our_rooms()

from core.errors import (  # noqa: E402 - our rooms are found first
    BudgetError,
    DataError,
    ModelError,
    NumericalError,
    OutputError,
    PlanError,
    PruningError,
    UsageError,
    VerificationError,
)
from core.failures import in_the_programs_words  # noqa: E402
from core.say import Say, heard_by, say_on_stderr, silent  # noqa: E402
from global_pruning_steps import Check, Scores, Session  # noqa: E402

if TYPE_CHECKING:
    from run.result import Result

__all__ = [
    "BudgetError",
    "Check",
    "DataError",
    "ModelError",
    "NumericalError",
    "OutputError",
    "PlanError",
    "PruningError",
    "Scores",
    "Session",
    "UsageError",
    "VerificationError",
    "open",
    "prune",
    "silent",
]


STREAMING = ("engine", "scratch", "low_memory")  # a model whose weights come and go is not handed from step to step


def prune(
    model: Any,
    *,
    ratio: float = 0.2,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    tokenizer: Any = None,
    say: Say = say_on_stderr,
    **options: Any,
) -> "Result":
    """Do everything that the command does: measure, plan, explain, repair, cut, save, prove, evaluate, report.

    model: hub id, folder or ``demo``, or a transformers model in memory, which needs its ``tokenizer`` and is left as
    found. ratio: ``--pruning_ratio``. dataset, output: the text to calibrate on, the folder for results; None: as the
    command chooses. say: hears what the command prints on the way. options: any other option of the command, by its
    name without dashes.
    Returns a ``Result``: ``.plan``, ``.findings``, ``.evaluation``, ``.perplexity``, ``.model``, ``.path``.
    Raises PruningError.
    """
    from cli.argv import argv_of
    from cli.keywords import settings_of
    from core.say import note
    from run.option_rules import idle_notes
    from run_global_pruning import run

    _refuse(options, ("pruning_ratio", "base_model"), "prune() takes model and ratio")
    given, name = _named(model, options)
    asked = {"base_model": name, "pruning_ratio": ratio, "dataset": dataset, "output": output, **options}
    settings = settings_of(asked)
    with heard_by(say), in_the_programs_words():
        for sentence in idle_notes(settings, frozenset(options)):
            note(sentence)
        return run(settings, argv=argv_of(settings), model=given, tokenizer=tokenizer)


def open(
    model: Any,
    *,
    dataset: str | Path | None = "wikitext2,self",
    tokenizer: Any = None,
    say: Say = say_on_stderr,
    **options: Any,
) -> Session:
    """A model to work on step by step; its weights are loaded, and text is read, when they are first needed.

    Arguments as in ``prune``. dataset None: no text; importance is then ``magnitude`` and nothing is repaired. options:
    those that say how to measure and repair (``device``, ``dtype``, ``num_samples``, ``seq_len``, ``seed``,
    ``batch_size``, ``reconstruct``, ``cache_dir``, …). Raises PruningError.
    """
    from cli.keywords import settings_of
    from run.settings import CalibrationSettings, ModelSettings, RepairSettings

    sections = (ModelSettings, CalibrationSettings, RepairSettings)
    allowed = {option.name for section in sections for option in fields(section)}
    allowed = allowed - {"base_model", *STREAMING} | {"cache_dir", "max_shard_size"}
    strangers = [name for name in options if name not in allowed]
    _refuse(options, strangers, f"open() takes {', '.join(sorted(allowed))}; other options belong to later steps")
    given, name = _named(model, options)
    without_text = {"importance_method": "magnitude", "reconstruct": "none"} if dataset is None else {}
    asked = {"base_model": name, "dataset": dataset, "run_evaluation": "none", **options, **without_text}
    return Session(settings_of(asked), given, tokenizer, say, reads_text=dataset is not None)


def _named(model: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """(the model where it is in memory, else None, its name). UsageError for options that such a model rules out."""
    if isinstance(model, (str, Path)):
        return None, str(model)
    _refuse(options, ("device", "dtype", *STREAMING, "trust_remote_code"), "a model in memory is taken as it is")
    return model, getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__


def _refuse(options: dict[str, Any], names: Any, reason: str) -> None:
    for name in names:
        if name in options:
            raise UsageError(f"{name}={options[name]!r}: {reason}")
