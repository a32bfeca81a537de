"""run_experiments.sh with a stand-in for the program: which commands it starts, what it compares, when it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run_experiments.sh"
OWN_VARIABLES = ("MODEL", "RATIO", "METHOD", "DATASET", "OTHER_DATASET", "OUTPUT", "PYTHON")
NAMES = [
    *("baseline", "norm_log", "norm_minmax", "clip", "norm_log_clip", "temperature_1", "temperature_1_norm_log"),
    "other_dataset",
]

PROGRAM = """#!/usr/bin/env bash
out=${!#}
if [ "$1 $2" = "-P -m" ]; then
    module=$3
    shift 3
    case $module in
        cli.finished) grep -qxF -- "$*" "$out/arguments" ;;
        diagnostics.compare) exec "$REAL_PYTHON" -P -m "$module" "$@" ;;
        calibration.code_file) mkdir -p "$(dirname "$out")" && echo code > "$out" && echo "$out" ;;
    esac
    exit
fi
echo "$*" >> "$CALLS"
name=$(basename "$out")
mkdir -p "$out/analysis" "$out/evaluation"
[ "$name" = "${FAIL:-}" ] && exit 7
shift
echo "{}" > "$out/run.json"
echo "$*" > "$out/arguments"
cat > "$out/analysis/pruning_comparison.json" <<'JSON'
{
  "total_params": {
    "original": 1000,
    "pruned": 800
  },
  "budget": {
    "achieved_of_prunable": 0.25
  }
}
JSON
cat > "$out/analysis/gradient_diagnosis.json" <<'JSON'
{
  "gradient_statistics": {
    "mean_ratio": 1234.5
  },
  "layers": [
    {"layer_idx": 0, "pruning_rate": 0.1},
    {"layer_idx": 1, "pruning_rate": 0.1},
    {"layer_idx": 2, "pruning_rate": 0.225},
    {"layer_idx": 3, "pruning_rate": 0.325},
    {"layer_idx": 4, "pruning_rate": 0.425}
  ]
}
JSON
cat > "$out/evaluation/evaluation_results.json" <<'JSON'
{
  "dense": {
    "perplexity": {
      "pydoc": {
        "perplexity": 10.126,
        "nll_nats_per_token": 2.0
      }
    },
    "latency": null
  },
  "pruned": {
    "perplexity": {
      "pydoc": {
        "perplexity": 12.5,
        "nll_nats_per_token": 2.5
      }
    }
  }
}
JSON
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "fake python"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


def experiments(program: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run from a folder that is not the script's; calls are logged beside the program."""
    folder = program.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    settings = {
        "PYTHON": str(program),
        "REAL_PYTHON": sys.executable,
        "CALLS": str(program.parent / "calls"),
    } | variables
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env=inherited | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def calls(program: Path) -> list[str]:
    return (program.parent / "calls").read_text().splitlines()


def test_eight_experiments_with_defaults_that_work_offline(program: Path) -> None:
    result = experiments(program)
    assert result.returncode == 0, result.stderr
    first = f"{SCRIPT.parent}/run_global_pruning.py --base_model demo --pruning_ratio 0.2 --importance_method taylor"
    kept = "--run_evaluation ppl --eval_datasets pydoc --cache_dir results/experiments/cache"
    common = f"{first} --dataset pydoc --reconstruct none {kept}"
    other = f"{first} --dataset results/experiments/python_code.txt --reconstruct none {kept}"
    norm, clip, temperature = "--enable_grad_norm --norm_method", "--enable_grad_clip", "--temperature 1.0 --tau 0.0"
    assert calls(program) == [
        f"{common} --output results/experiments/baseline",
        f"{common} {norm} log --output results/experiments/norm_log",
        f"{common} {norm} minmax --output results/experiments/norm_minmax",
        f"{common} {clip} --output results/experiments/clip",
        f"{common} {norm} log {clip} --output results/experiments/norm_log_clip",
        f"{common} {temperature} --output results/experiments/temperature_1",
        f"{common} {temperature} {norm} log --output results/experiments/temperature_1_norm_log",
        f"{other} --output results/experiments/other_dataset",
    ]
    assert (program.parent / "elsewhere/results/experiments/baseline/analysis").is_dir()
    assert (program.parent / "elsewhere/results/experiments/python_code.txt").is_file()


def test_variables_and_further_arguments_reach_every_run(program: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "my results")
    experiments(
        program,
        "--num_samples",
        "8",
        MODEL="some/model",
        RATIO="0.3",
        METHOD="fisher",
        DATASET="c4",
        OTHER_DATASET="my text.txt",
        OUTPUT=out,
    )
    assert len(calls(program)) == 8
    for call in calls(program):
        assert "--base_model some/model --pruning_ratio 0.3 --importance_method fisher --dataset " in call
        assert f"--cache_dir {out}/cache --num_samples 8 " in call
        assert f"--output {out}/" in call
    judged = "--reconstruct none --run_evaluation ppl --eval_datasets c4 --cache_dir"
    assert all(f"--dataset c4 {judged}" in call for call in calls(program)[:7])
    assert f"--dataset my text.txt {judged}" in calls(program)[7]


def test_what_is_finished_with_the_same_options_is_skipped(program: Path) -> None:
    experiments(program, FAIL="clip")
    (program.parent / "calls").unlink()
    result = experiments(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished before with the same options: skipped") == 7
    assert "results/experiments/clip holds an unfinished run, which is replaced" in result.stdout
    (call,) = calls(program)
    assert call.startswith(f"{SCRIPT.parent}/run_global_pruning.py --overwrite --base_model demo ")
    assert call.endswith("--enable_grad_clip --output results/experiments/clip")


def test_other_options_and_overwrite_run_again(program: Path) -> None:
    experiments(program)
    for arguments in (["--num_samples", "8"], ["--overwrite"]):
        (program.parent / "calls").unlink()
        result = experiments(program, *arguments)
        assert "skipped" not in result.stdout
        assert len(calls(program)) == 8


def rows(comparison: str, table: str) -> dict[str, str]:
    """Run -> the rest of its row in one table of the comparison, blanks squeezed."""
    lines = comparison.split(f"\n{table}\n")[1].split("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines if "  " in line}


def test_comparison_shows_layers_2_to_4_ratio_and_perplexity(program: Path) -> None:
    result = experiments(program)
    comparison = result.stdout.split("=== Layers 2-4")[1]
    layers, cost = rows(comparison, "Layers"), rows(comparison, "Cost")
    for name in NAMES:
        assert layers[name].startswith("22.5 % 32.5 % 42.5 % 32.5 points none 1,234 "), result.stderr
        assert "10.13 → 12.50 +23.4 %" in cost[name]
    report = program.parent / "elsewhere/results/experiments/comparison/report.html"
    assert "is best of 8" in report.read_text(encoding="utf-8")


def test_the_folder_it_is_called_from_is_not_searched_for_modules(program: Path) -> None:
    folder = program.parent / "elsewhere"
    (folder / "diagnostics").mkdir(parents=True)
    (folder / "diagnostics" / "__init__.py").write_text("raise SystemExit('the wrong diagnostics')")
    result = experiments(program)
    assert result.returncode == 0, result.stderr
    assert "the wrong diagnostics" not in result.stderr


def test_a_failed_experiment_does_not_stop_the_others(program: Path) -> None:
    result = experiments(program, FAIL="norm_log")
    assert result.returncode == 1
    assert len(calls(program)) == 8
    assert "norm_log FAILED (exit status 7)" in result.stderr
    assert "1 of 8 experiments failed: norm_log" in result.stderr
    comparison = result.stdout.split("=== Layers 2-4")[1]
    assert "norm_log: no result" in comparison
    assert set(rows(comparison, "Layers")) == set(NAMES) - {"norm_log"}


def test_figures_of_an_earlier_run_are_marked(program: Path) -> None:
    experiments(program)
    result = experiments(program, "--overwrite", FAIL="baseline")
    assert "baseline (failed this time; these figures are from an earlier run)" in result.stdout
    assert result.stdout.count("earlier run") == 1


def test_the_projects_own_environment_is_preferred(program: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / "run_experiments.sh").write_text(SCRIPT.read_text())
    (copy / ".venv/bin/python").symlink_to(program)
    for room in ("core", "diagnostics"):
        (copy / room).symlink_to(SCRIPT.parent / room)
    environment = {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}
    environment |= {"CALLS": str(tmp_path / "calls"), "REAL_PYTHON": sys.executable}
    result = subprocess.run(
        ["bash", str(copy / "run_experiments.sh")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0
    assert len(calls(program)) == 8
