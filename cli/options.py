"""Every option, grouped by stage, with its unit and default; checked before anything heavy is imported."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cli.one_line_parser import OneLineParser
from cli.plan_options import (
    allocation_options,
    correction_options,
    pruning_options,
    remedy_options,
    score_options,
)
from cli.run_options import (
    calibration_options,
    evaluation_options,
    model_options,
    output_options,
    recovery_options,
    repair_options,
)
from core.errors import UsageError
from core.program import program_name
from run.complete import complete
from run.settings import Settings

DESCRIPTION = (
    "Make a Hugging Face causal LM smaller by global structured pruning: rank all attention KV groups and MLP "
    "channels together, remove the lowest-ranked ones, explain what was removed and why, and save a model that loads."
)
EPILOG = """commands that work:
  # the embedded model and text; no network, no GPU
  %(prog)s --base_model demo --pruning_ratio 0.2 --dataset pydoc

  # look first: plan, findings and pictures, but no pruned model
  %(prog)s --base_model demo --pruning_ratio 0.5 --ratio_of prunable --dataset pydoc --dry_run --output results/look

  # the remedy for layers whose gradients are on another scale, with the correction by block
  %(prog)s --base_model demo --dataset pydoc --enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0 \\
      --output results/remedied

  # replay a saved plan
  %(prog)s --base_model demo --dataset pydoc --plan results/look/analysis/pruning_plan.json --output results/replayed

  # a hub model on a GPU (network needed)
  %(prog)s --base_model mistralai/Mistral-7B-v0.3 --pruning_ratio 0.2 --importance_method taylor --dataset c4

other commands (each has a --help):
  %(prog)s compare results/look results/remedied    # compare finished runs
  %(prog)s gguf results/remedied/model              # export a saved model as one GGUF file
  %(prog)s verify results/remedied                  # repeat the proof of a saved model

exit codes: 0 done; 2 the input cannot work (one line on stderr says why and what to do);
3 NaN or Inf while measuring; 4 the saved model failed its own proof; 129 ended by SIGHUP;
130 interrupted with Ctrl-C; 143 ended by SIGTERM
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=program_name(),
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # defaults are the settings' own; what was not given is absent
        allow_abbrev=False,
    )
    model_options(parser.add_argument_group("model"))
    pruning_options(parser.add_argument_group("pruning"))
    score_options(parser.add_argument_group("score transforms (clip, then normalise inside each layer)"))
    correction_options(parser.add_argument_group("correction by block (after normalising, before ranking)"))
    remedy_options(parser.add_argument_group("remedies"))
    allocation_options(
        parser.add_argument_group("protection and allocation (by loss on calibration text that is set aside)")
    )
    calibration_options(parser.add_argument_group("calibration"))
    repair_options(parser.add_argument_group("repair (after the plan, before surgery)"))
    recovery_options(parser.add_argument_group("recovery (after surgery)"))
    output_options(parser.add_argument_group("output"))
    evaluation_options(parser.add_argument_group("evaluation"))
    return parser


@dataclass(frozen=True)
class Command:
    """A command line, parsed: the settings it asks for, the options it names, and its words as typed."""

    settings: Settings
    given: frozenset[str]
    argv: tuple[str, ...]


def parse_options(argv: Sequence[str] | None = None) -> Command:
    """Parse and check; leaves through ``parser.error`` (exit code 2) with one line when a value cannot work."""
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    _refuse_blank_arguments(parser, arguments)
    options = parser.parse_args(arguments)
    given = frozenset(word.split("=")[0].lstrip("-") for word in arguments if word.startswith("--"))
    try:
        return Command(complete(vars(options)), given, tuple(arguments))
    except UsageError as error:
        parser.error(str(error))


def _refuse_blank_arguments(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """``--output ""`` and ``--output=``, which would mean the current folder; and a lone space."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        option = before if not word else word.removesuffix("=") if word.endswith("=") else ""
        if option.startswith("--") and "=" not in option:
            parser.error(f"{option} is empty: is a variable of the shell unset? Give a value, or leave the option out")
        if word and not word.strip():
            after = f"after '{before}'" if before else "as the first argument"
            parser.error(
                f"empty argument {after}: a space or a comment follows the backslash that continues the line; let the "
                "line end with the backslash itself"
            )
