"""The program as people call it: from a shell, in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open
from workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "run_global_pruning.py"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )


def test_the_original_command_line(workspace: Workspace) -> None:
    """Flags and line breaks as in the original scripts; run from another folder; the checkpoint is really smaller."""
    done = shell(
        f"""{sys.executable} -W error::UserWarning {PROGRAM} --base_model {workspace.model} --pruning_ratio 0.2 \\
            --importance_method taylor \\
            --enable_grad_norm --norm_method log --temperature 1.0 --tau 0.0 \\
            --dataset {workspace.text} --num_samples 4 --seq_len 16 --eval_seq_len 32 --output results/x""",
        workspace.root,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = workspace.root / "results" / "x"
    comparison = json.loads((folder / "analysis" / "pruning_comparison.json").read_text())
    with safe_open(folder / "model" / "model.safetensors", "pt") as file:
        stored = sum(file.get_slice(name).get_shape()[0] * _width(file, name) for name in file.keys())  # noqa: SIM118
    assert stored == comparison["total_params"]["pruned"] < comparison["total_params"]["original"]
    assert 0.19 < comparison["total_params"]["reduction_ratio"] <= 0.2
    assert shell(f'grep -c "^Layer 2 " {folder}/analysis/pruning_summary_by_layer.txt', ROOT).stdout == "1\n"
    assert "mean_ratio" in shell(f"grep mean_ratio {folder}/analysis/gradient_diagnosis.json", ROOT).stdout
    for word in ("perplexity", "parameters", "Findings", str(Path("results/x/model"))):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


def _width(file: safe_open, name: str) -> int:
    shape = file.get_slice(name).get_shape()
    return shape[1] if len(shape) > 1 else 1


def test_a_space_after_a_backslash_is_named(workspace: Workspace) -> None:
    done = shell(f"{sys.executable} {PROGRAM} --base_model {workspace.model} \\ \n--pruning_ratio 0.2", workspace.root)
    assert f"error: empty argument after '{workspace.model}': a space or a comment follows" in done.stderr
    assert "backslash" in done.stderr


def test_help_is_quick_to_import() -> None:
    """--help and wrong values answer before torch is imported."""
    code = (
        "import sys, run_global_pruning\n"
        "try:\n    run_global_pruning.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _hear_ctrl_c() -> None:
    """Programs that a shell starts in the background ignore it, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_nothing_that_looks_finished(workspace: Workspace) -> None:
    output = workspace.root / "interrupted"
    arguments = [*workspace.base_arguments(), "--num_samples", "60", "--output", str(output)]
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments, "--temperature", "1", "--batch_size", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=_hear_ctrl_c,
    ) as process:
        assert process.stderr is not None
        for raw in process.stderr:
            if raw.startswith(b"[importance]"):
                time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().decode()
        assert process.wait(timeout=60) == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not (output / "run.json").exists()
    assert not (output / "model").exists()


def test_experiments_script_measures_once_compares_and_skips_what_is_finished(workspace: Workspace) -> None:
    command = (
        f"MODEL={workspace.model} RATIO=0.2 METHOD=taylor DATASET={workspace.text} "
        f"OTHER_DATASET={workspace.other_text} OUTPUT=matrix bash {ROOT}/run_experiments.sh "
        "--num_samples 4 --seq_len 16 --eval_seq_len 32 --prior_samples 2 --no_verify"
    )
    done = shell(command, workspace.root)
    assert done.returncode == 0, done.stderr[-2000:]
    records = {
        path.parent.name: json.loads(path.read_text()) for path in (workspace.root / "matrix").glob("*/run.json")
    }
    assert len(records) == 8
    measured = [name for name, record in records.items() if record["facts"]["cache"]["importance"] == "miss"]
    assert sorted(measured) == ["baseline", "other_dataset"]
    priors = [record["facts"]["cache"].get("prior") for record in records.values()]
    assert (priors.count("miss"), priors.count("hit")) == (1, 1)
    table = done.stdout.split("\nLayers\n")[1].split("\n\n")[0]
    assert all(f"\n{name} " in table for name in records)  # the tiny model has layers 0, 1, 2
    assert (workspace.root / "matrix" / "comparison" / "report.html").is_file()
    shutil.rmtree(workspace.root / "matrix" / "clip")
    times = {path: path.stat().st_mtime_ns for path in (workspace.root / "matrix").glob("*/run.json")}
    again = shell(command, workspace.root)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count("skipped") == 7
    assert (workspace.root / "matrix" / "clip" / "run.json").exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
