"""Prune one model with and without remedies through the real command line, and compare.

Every run is a folder below the output; one that is there with the same options is not run again. A model that was built
anew under the same name goes unnoticed: give another output then.
"""

import json
import shlex
import sys
from pathlib import Path

from benchmarks.program import run_program
from cli.finished import is_finished
from cli.options import parse_options
from diagnostics.comparison.compare import compare

BASELINE = "baseline"
RUNS = {
    BASELINE: "",
    "log": "--enable_grad_norm --norm_method log",
    "log_T1": "--enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0",
    "T1": "--temperature 1.0 --tau 0.0",
    "clip_log": "--enable_grad_clip --enable_grad_norm --norm_method log",
    "auto": "--remedy auto",
}


def walk(model: str, ratio: str, output: Path) -> str:
    """Run all of RUNS on ``model`` at ``ratio`` of the prunable parameters; the findings and the comparison."""
    for name, flags in RUNS.items():
        run_once(arguments_of(model, ratio, output, name), flags or "no remedy")
    table = compare([output / name for name in RUNS], output / "comparison", overwrite=True)
    return f"{advice(output / BASELINE)}\n\n{table}"


def arguments_of(model: str, ratio: str, output: Path, name: str) -> list[str]:
    base = ["--base_model", model, "--dataset", "pydoc", "--pruning_ratio", ratio, "--ratio_of", "prunable"]
    kept = ["--cache_dir", str(output / "cache"), "--output", str(output / name)]
    base += ["--importance_method", "taylor", "--reconstruct", "none"]  # a repair would hide the damage
    return [*base, *shlex.split(RUNS[name]), "--no_save_model", *kept]


def run_once(arguments: list[str], description: str) -> None:
    finished = is_finished(parse_options(arguments).settings)
    print(f"{description}: {'finished before' if finished else 'running'}", file=sys.stderr, flush=True)
    if not finished:
        run_program([*arguments, "--overwrite"])


def advice(folder: Path) -> str:
    """What the findings of a run name, a line each: issue, severity, flags."""
    diagnosis = json.loads((folder / "analysis" / "gradient_diagnosis.json").read_text(encoding="utf-8"))
    lines = [f"{item['issue']} ({item['severity']}): {item['flags'] or 'no flags'}" for item in diagnosis["diagnosis"]]
    return "\n".join([f"Findings of {folder.name}", *lines])
