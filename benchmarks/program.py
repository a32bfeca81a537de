"""The program as people run it: a process of its own, silent unless it fails."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "run_global_pruning.py"


def run_program(arguments: Sequence[str]) -> str:
    """What ``run_global_pruning.py`` printed to stdout; a failure ends this program with what it said on stderr."""
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-2000:]}")
    return done.stdout
