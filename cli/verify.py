"""``global-pruning verify FOLDER``: the self-proof of a folder that this program wrote, made again."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.options import OneLineParser
from core.errors import PruningError
from core.program import program_name


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit code 0 where every check passed, 4 where one failed, 2 where the folder or its base model cannot be read."""
    parser = OneLineParser(
        prog=prog or f"{program_name()} verify",
        description="Load the model of a finished run as its users will, and hold it against its base model without "
        "the groups that went. A repair is repeated first, on the text that the run used. Nothing is written.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a finished run: what --output named")
    parser.add_argument("--base_model", metavar="M", help="where the base model is now (default: as in the run)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default auto)")
    asked = parser.parse_args(argv)

    from run.prove_again import prove_again
    from run.surroundings import surroundings

    try:
        with surroundings(0):
            proof = prove_again(asked.folder, base_model=asked.base_model, device=asked.device)
    except PruningError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join([f"{check.name:<14}{'passed' if check.passed else 'FAILED'}" for check in proof.checks]))
    print(proof.line())
    return 0 if proof.passed else 4
