"""Importance by halves of the windows, what the plans from them share, and what a run says of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostics_cases import found, importance_of, issues, plan_of, scores_of
from tiny_models import token_ids, windows_of
from workspace import Workspace

from core.measured import Stability
from diagnostics.findings.diagnosis import diagnose
from diagnostics.findings.quantities import Extras
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.findings.rules_of_the_run import LOW_OVERLAP
from importance.measure import measure_importance
from importance.tally import halves_of
from models.architecture import architecture_of
from models.family_table import family_of

IDS = token_ids(rows=7, length=9)


def measure(model: Any, ids: Any, **options: Any) -> Any:
    family = family_of(model.config.model_type)
    return measure_importance(model, family, architecture_of(model, family), windows_of(ids), **options)


@pytest.mark.parametrize("criterion", ["taylor", "taylor_2nd", "fisher", "obs", "wanda"])
def test_halves_equal_two_measurements(family_model: Any, criterion: str) -> None:
    """Windows 0, 2, 4, 6 and 1, 3, 5, whatever the batches: 3 + 3 + 1 begin with an even, an odd and an even one."""
    whole = measure(family_model, IDS, criterion=criterion, batch_size=3)
    assert whole.halves is not None
    for half, rows in zip(whole.halves, (IDS[::2], IDS[1::2]), strict=True):
        np.testing.assert_allclose(half, measure(family_model, rows, criterion=criterion).values, rtol=1e-3, atol=1e-9)


def test_halves_by_hand() -> None:
    # Sums over 2 even windows (4, 0) and over all 3 (10, 0): means 2 and 0, 6 and 0.
    halves = halves_of(np.array([4.0, 0.0]), np.array([10.0, 0.0]), 2, 1)
    assert halves is not None
    assert halves.tolist() == [[2, 0], [6, 0]]
    rounded = halves_of(np.array([4.0]), np.array([4.0 - 1e-16]), 2, 2)
    assert rounded is not None
    assert rounded.min() >= 0
    assert halves_of(np.ones(1), np.ones(1), 1, 0) is None


def test_magnitude_has_no_halves(llama: Any) -> None:
    assert measure(llama, IDS, criterion="magnitude").halves is None


def test_a_sum_of_gradients_and_a_single_window_have_no_halves(llama: Any) -> None:
    assert measure(llama, IDS, criterion="taylor", gradient_reduction="sum").halves is None
    for criterion in ("taylor", "fisher", "obs", "wanda"):
        assert measure(llama, IDS[:1], criterion=criterion).halves is None


# Runs


def stability(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "run.json").read_text())["facts"]["stability"]
    return facts


def test_run_json_tells_how_stable_the_plan_is(workspace: Workspace) -> None:
    dry = ["--dry_run", "--run_evaluation", "none"]
    told = stability(workspace.run("few", *dry, "--num_samples", "2"))
    assert told["windows"] == 2
    assert 0 < told["overlap"] <= 1
    assert 0 < told["chance"] < 1
    assert told["reason"] is None
    more = stability(workspace.run("more", *dry, "--num_samples", "40"))
    assert more["overlap"] > told["overlap"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--importance_method", "magnitude"], "reads no text"),
        (["--gradient_reduction", "sum"], "sum"),
        (["--num_samples", "1"], "the halves need a window each"),
        (["--num_samples", "1", "--importance_method", "obs"], "the halves need a window each"),
    ],
)
def test_what_has_no_halves_says_why(workspace: Workspace, arguments: list[str], reason: str) -> None:
    run = workspace.run("-".join(arguments).strip("-"), *arguments, "--dry_run", "--run_evaluation", "none")
    told = stability(run)
    assert (told["overlap"], told["chance"]) == (None, None)
    assert reason in told["reason"]


def test_obs_has_halves_where_memory_holds_them(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--importance_method", "obs", "--dry_run", "--run_evaluation", "none"]
    told = stability(workspace.run("obs", *arguments))
    assert 0 < told["overlap"] <= 1
    assert told["reason"] is None
    monkeypatch.setattr("importance.obs_moments.LEAST_BYTES", 1)
    told = stability(workspace.run("obs-little-memory", *arguments))
    assert (told["overlap"], told["chance"]) == (None, None)
    assert "memory" in told["reason"]


def test_a_replayed_plan_has_no_stability(workspace: Workspace) -> None:
    run = workspace.run("first", "--dry_run", "--run_evaluation", "none")
    plan = str(run / "analysis" / "pruning_plan.json")
    again = workspace.run("replayed", "--plan", plan, "--dry_run", "--run_evaluation", "none")
    assert stability(again) is None


@pytest.mark.parametrize("criterion", ["taylor", "obs"])
def test_halves_come_back_from_the_cache(workspace: Workspace, criterion: str) -> None:
    arguments = ["--dry_run", "--run_evaluation", "none", "--cache_dir", str(workspace.root / f"kept-{criterion}")]
    runs = [workspace.run(f"kept-{criterion}-{i}", "--importance_method", criterion, *arguments) for i in range(2)]
    assert stability(runs[0]) == stability(runs[1])
    assert stability(runs[1])["overlap"] is not None


# The finding


def judged(overlap: float | None) -> Any:
    plan = plan_of([30, 20, 25, 22, 28, 20])
    frozen = np.zeros(len(plan.groups), dtype=bool)
    extras = Extras(stability=Stability(overlap, 0.2, 32))
    return diagnose(
        plan.architecture, importance_of(plan), scores_of(plan), plan, None, frozen, ActiveRemedies(), extras
    )


def test_a_low_overlap_is_a_finding_that_names_twice_the_windows() -> None:
    finding = found(judged(LOW_OVERLAP - 0.05), "unstable_plan")
    assert finding.flags == "--num_samples 64"
    assert f"share {100 * LOW_OVERLAP - 5:.1f} % of what they remove (by chance 20.0 %)" in finding.description
    assert "unstable_plan" not in issues(judged(LOW_OVERLAP))
    assert "unstable_plan" not in issues(judged(None))
