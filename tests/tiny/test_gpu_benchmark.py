"""``python -m benchmarks.gpu`` where there is no GPU; a run where only torch and transformers are installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import Workspace

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.clock import launches_and_waits
from benchmarks.gpu.rows import Row, table

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("--only", "elimination", "gradients", "obs", "writing", "repair", "small")
WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "lm_eval", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import run_global_pruning
sys.exit(run_global_pruning.main(sys.argv[1:]))
"""


def test_a_row_compares_with_backward_or_with_an_aim_in_seconds() -> None:
    """3 s against 4 s and an aim of 0.75 times that; 30 TFLOP in 3 s of 40 a second are a quarter."""
    gradient = Row("fisher", 3.0, 4.0, 0.75, aim_is_ratio=True, flop=30e12, launches=60.4, waits=0.125)
    assert (gradient.ratio, gradient.reached, gradient.share_of(40e12)) == (0.75, True, 0.25)
    late = Row("obs", 91.0, aim=90.0)
    assert (late.ratio, late.reached, late.share_of(40e12)) == (None, False, None)
    full = Row("whole run", 100.0, aim=180.0, peak_bytes=31 * 2**30, most_bytes=30 * 2**30)
    assert full.reached is False
    assert Row("backward", 1.0).reached is None
    lines = table([gradient, late], 40e12).splitlines()
    assert lines[2] == "| fisher | 3 | 0.75 | ≤ 0.75 × | yes | 30 | 25% |  |  | 60 | 0.12 |"
    assert lines[3].startswith("| obs | 91 |  | ≤ 90 s | no |")
    assert gradient.record(40e12)["share_of_peak"] == 0.25


def test_launches_are_operators_but_views_and_waits_are_values() -> None:
    """Two products and a sum, and one value asked for."""
    a = torch.eye(3)
    assert launches_and_waits(lambda: float((a @ a.T @ a)[0].sum()), torch.device("cpu")) == (4, 1)


def test_the_stages_run_on_a_tiny_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *STAGES, "--device", "cpu", "--json", str(tmp_path / "t.json")])
    assert main() == 0
    record = json.loads((tmp_path / "t.json").read_text())
    rows: dict[str, Any] = {row["what"].split(",")[0]: row for row in record["rows"]}
    assert set(rows) == {
        *("elimination of 192 channels (launches and waits: a removal)", "plain backward", "fisher", "taylor", "obs"),
        *("writing", "repair", "distil"),
    }
    assert all(row["seconds"] > 0 and row["flop"] > 0 and row["bytes"] > 0 for row in rows.values())
    assert rows["fisher"]["ratio"] > 0
    assert rows["elimination of 192 channels (launches and waits: a removal)"]["waits"] == 0
    assert record["matmul_flop_per_s"] > 0
    assert "| fisher, tiny, a window of 64 |" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cuda:77", "--json", str(tmp_path / "t.json")])
    with pytest.raises(SystemExit, match=r"^error: --device cuda:77: this machine has \d+ CUDA devices"):
        main()
    assert not (tmp_path / "t.json").exists()


@pytest.mark.slow
def test_the_whole_command_runs_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--json", str(tmp_path / "t.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whats = [row["what"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]]
    assert sum(what.startswith("whole run") for what in whats) == 3


def test_a_machine_with_torch_and_transformers_alone_prunes_saves_proves_and_measures(tmp_path: Path) -> None:
    """No datasets, no lm-eval, no matplotlib: pictures are gone without, and said; nothing else is missed."""
    workspace = Workspace.make(tmp_path)
    output = tmp_path / "out"
    arguments = [*workspace.base_arguments(), "--importance_method", "obs", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "matplotlib" in done.stderr
    assert json.loads((output / "analysis" / "verification.json").read_text())["passed"]
    results = json.loads((output / "evaluation" / "evaluation_results.json").read_text())
    assert list(output.glob("model/*.safetensors"))
    assert "perplexity" in json.dumps(results)
