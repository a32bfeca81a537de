"""``global-pruning verify FOLDER``: the self-proof of a folder that this program wrote, made again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cli.one_line_parser import OneLineParser
from core.errors import ModelError, VerificationError
from core.failures import exit_code
from core.program import program_name
from core.say import heard_by, say_on_stderr


def build_parser(prog: str) -> OneLineParser:
    parser = OneLineParser(
        prog=prog,
        description="Load the model of a finished run as its users will, and compare it with its base model without "
        "the removed groups. If the run repaired the model, the repair is repeated first, on the same text. Weights "
        "that were trained after the cut (--recover) are known by their checksums. Nothing is written.",
        epilog="exit codes: 0 every check passed; 2 the folder or its base model cannot be read; 4 a check failed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a finished run, as --output named it")
    parser.add_argument("--base_model", metavar="M", help="where the base model is now (default as in the run)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code 0 where every check passed, 4 where one failed, 2 where the folder or its base model cannot be read."""
    asked = build_parser(prog or f"{program_name()} verify").parse_args(argv)

    with heard_by(say_on_stderr):
        return exit_code(lambda: _prove(asked))


def _prove(asked: argparse.Namespace) -> None:
    """Print every check. Raises VerificationError where one failed, PruningError where none can be made."""
    from run.prove_again import prove_again
    from run.surroundings import surroundings

    with surroundings(0):
        proof = prove_again(asked.folder, base_model=asked.base_model, device=asked.device)
    for check in proof.checks:
        print(f"{check.name:<14}{'passed' if check.passed else 'FAILED'}  error {check.error:.1e}")
    for name, reason in proof.not_run.items():
        print(f"{name:<14}not run ({reason})")
    if not proof.passed:
        raise VerificationError(proof.line())
    if proof.unproved:
        raise ModelError(f"the proof cannot be made here: {proof.unproved}")
    print(proof.line())
