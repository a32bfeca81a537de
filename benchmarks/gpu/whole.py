"""A whole run with the defaults, from loading to the report, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.rows import Row
from benchmarks.program import PROGRAM


def whole_run_row(
    name: str, base_model: str, text: list[str], device: str, *, aim: float | None, weight_bytes: int | None = None
) -> Row:
    """text: options that say how much is calibrated and evaluated on. weight_bytes: with them 16 GB more are the most
    that tensors may take, and ``--gpu_memory`` says so; None: no bound."""
    most = None if weight_bytes is None or device == "cpu" else weight_bytes + 16 * 10**9
    command = [sys.executable, str(PROGRAM), "--base_model", base_model, "--dataset", "pydoc,self", "--device", device]
    command += ["--run_evaluation", "ppl", "--eval_elsewhere", "none", *text]
    if most is not None:
        command += ["--gpu_memory", f"{most // 10**6}MB"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        start = time.perf_counter()
        environment = {**os.environ, "GLOBAL_PRUNING_CACHE": "none", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [*command, "--output", str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:  # as it comes: a run that is cut off has told how far it was
                print(f"{time.perf_counter() - start:6.1f} s  {line.rstrip()}", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - start
        if run.returncode:
            raise SystemExit(f"{' '.join(command)} failed, exit code {run.returncode}")
        record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    stages = ", ".join(f"{stage} {took:.1f}" for stage, took in record["timings_s"].items() if took >= 0.1)
    print(f"whole run, {name}: {seconds:.1f} s ({stages})", file=sys.stderr)
    peak = record["peak_memory_bytes"].get("gpu")
    return Row(f"whole run, {name}, load to report", seconds, aim=aim, peak_bytes=peak, most_bytes=most)
