"""python -m models.gguf FOLDER [--outfile FILE] [--outtype {f32,f16,bf16,q8_0}]"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import PruningError
from models.gguf import OUTTYPES, export_gguf


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or that of the PruningError whose one line went to stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m models.gguf",
        description="Export a saved checkpoint, pruned or dense, to one GGUF file for llama.cpp.",
    )
    parser.add_argument("folder", type=Path, help="folder written by this tool or by save_pretrained")
    parser.add_argument("--outfile", type=Path, help="the file to write (FOLDER/<its name>-<outtype>.gguf)")
    parser.add_argument("--outtype", choices=OUTTYPES, default="f16", help="type of the matrices (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        exported = export_gguf(options.folder, options.outfile, options.outtype)
    except PruningError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    megabytes = exported.size_bytes / 1e6
    print(f"{exported.path}: {exported.arch}, {exported.tensors} tensors, {options.outtype}, {megabytes:.1f} MB")
    for note in exported.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
