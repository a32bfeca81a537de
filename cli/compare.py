"""``global-pruning compare RESULTS…``: finished runs side by side; ``--help`` tells the rest."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cli.one_line_parser import OneLineParser
from core.console import console
from core.failures import exit_code
from core.program import called_as

DESCRIPTION = (
    "Compare runs by their folders: size, perplexity and tasks before and after, what each layer lost, whether they "
    "are healthy, and which groups their plans share. Partial, dry and older runs will do: what is missing is named."
)
EPILOG = """commands that work:
  %(prog)s results/baseline results/remedied
  %(prog)s results/experiments/* --output results/comparison

written with --output DIR: comparison.json, comparison.csv, comparison.md, report.html, two pictures
exit codes: 0 done; 2 a folder cannot be read or written (one line says why)
"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RESULTS", help="folders that runs wrote with --output")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write files there (default: print only)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison in DIR (default off)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """prog: how it was called, for usage. Returns the exit code."""
    with console():
        from diagnostics.comparison.compare import compare

        options = build_parser(prog or called_as()).parse_args(argv)
        return exit_code(lambda: print(compare(options.runs, options.output, options.overwrite)))
