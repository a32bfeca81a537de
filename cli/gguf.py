"""``global-pruning gguf FOLDER [--outfile FILE] [--outtype {f32,f16,bf16,q8_0}]``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cli.one_line_parser import OneLineParser
from core.console import console
from core.failures import exit_code
from core.memory import bytes_text
from core.program import called_as
from models.gguf import OUTTYPES, export_gguf


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """prog: how it was called, for usage. Exit code 0, or that of the failure whose one line went to stderr."""
    with console():
        options = build_parser(prog or called_as()).parse_args(arguments)
        return exit_code(lambda: export(options))


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description="Export a saved checkpoint, pruned or dense, to one GGUF file for llama.cpp.",
        epilog="exit codes: 0 done; 2 the folder cannot be read, exported or written to (one line says why)",
    )
    parser.add_argument("folder", type=Path, help="folder written by this tool or by save_pretrained")
    parser.add_argument("--outfile", type=Path, help="file to write (default FOLDER/<its name>-<outtype>.gguf)")
    parser.add_argument("--outtype", choices=OUTTYPES, default="f16", help="type of the matrices (default %(default)s)")
    return parser


def export(options: argparse.Namespace) -> None:
    exported = export_gguf(options.folder, options.outfile, options.outtype)
    size = bytes_text(exported.size_bytes)
    print(f"{exported.path}: {exported.arch}, {exported.tensors} tensors, {options.outtype}, {size}")
    for note in exported.notes:
        print(f"note: {note}")
