"""The files of analysis/: exact keys, hand-worked numbers, standard JSON, rows that grep finds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from diagnostics_cases import SHAPE, importance_of, judge, plan_of, scores_of
from tables import reshaped

from core.measured import Prior
from core.plan import PruningPlan
from diagnostics.findings.diagnosis import Diagnosis, diagnose
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.reports.analysis import comparison, summary_by_layer, write_groups, write_reports


def strict_json(path: Path) -> Any:
    """Refuses NaN and Infinity, which are no JSON."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"found {name}"))


def one_removed() -> PruningPlan:
    """Three layers: untouched; 1 of 2 KV groups and 28 channels gone; removed whole."""
    plan = plan_of([0, 28, 98])
    keep = plan.keep.copy()
    keep[plan.groups.rows(1, 0).start] = False
    keep[plan.groups.rows(2, 0)] = False
    # 1 + 28 in layer 1, 100 and 5 norm parameters in layer 2
    return replace(
        plan, keep=keep, removed_layers=(2,), removed_params=134, budget_params=140, requested_ratio=140 / 300
    )


def diagnosis_of(plan: PruningPlan, **changes: Any) -> Diagnosis:
    values: dict[str, Any] = {"importance": importance_of(plan), "scores": scores_of(plan), "prior": None} | changes
    frozen = np.zeros(len(plan.groups), dtype=bool)
    return diagnose(
        plan.architecture,
        values["importance"],
        values["scores"],
        plan,
        values["prior"],
        frozen,
        ActiveRemedies(),
    )


def test_comparison_by_hand() -> None:
    plan = one_removed()
    report = comparison(plan)
    # 200 embedding parameters, 3 layers of 105
    assert report["total_params"] == {
        "original": 515,
        "pruned": 381,
        "reduced": 134,
        "reduction_ratio": 134 / 515,
    }
    assert report["layer_params"] == {
        "original": 315,
        "pruned": 181,
        "reduced": 134,
        "reduction_ratio": 134 / 315,
    }
    assert report["layers"][1] == {
        "layer_idx": 1,
        "total": {"original": 105, "pruned": 76, "reduced": 29, "reduction_ratio": 29 / 105},
        "attention": {
            "original": 2,
            "pruned": 1,
            "reduced": 1,
            "reduction_ratio": 0.5,
            "num_heads": {"original": 4, "pruned": 2},
            "num_kv_heads": {"original": 2, "pruned": 1},
        },
        "mlp": {
            "original": 98,
            "pruned": 70,
            "reduced": 28,
            "reduction_ratio": 28 / 98,
            "intermediate_size": {"original": 98, "pruned": 70},
        },
        "is_zero_layer": False,
    }
    gone = report["layers"][2]
    assert gone["is_zero_layer"]
    assert gone["total"] == {"original": 105, "pruned": 0, "reduced": 105, "reduction_ratio": 1.0}
    assert gone["mlp"]["intermediate_size"] == {"original": 98, "pruned": 0}
    assert not report["layers"][0]["is_zero_layer"]


def test_budget_is_told_over_both_numbers_of_parameters() -> None:
    budget = comparison(one_removed())["budget"]
    assert budget["requested_of_prunable"] == budget["requested_ratio"] == 140 / 300
    assert budget["requested_of_total"] == 140 / 515
    assert budget["achieved_of_prunable"] == 134 / 300
    assert budget["achieved_of_total"] == 134 / 515
    assert budget["budget_gap_params"] == 6


def test_keys_of_the_diagnosis() -> None:
    report = judge([10, 10, 91, 92, 93] + [10] * 7, mean=[1, 1, 1e-4, 2e-4, 3e-4] + [2.0] * 7).to_json()
    assert report["num_extreme_layers"] == 3
    assert report["extreme_pruning_layers"][1] == {
        "layer_idx": 3,
        "pruning_rate": 0.92,
        "importance": 1.0,
        "gradient_mean": 2e-4,
        "gradient_norm": 2e-3,
    }
    assert report["gradient_source"] == "weights"
    assert report["gradient_statistics"] == {
        "mean_range": [1e-4, 2.0],
        "mean_ratio": pytest.approx(20000),
        "norm_range": [1e-3, 20.0],
        "norm_ratio": pytest.approx(20000),
    }
    assert set(report["score_statistics"]) == {"before", "after"}
    assert set(report["diagnosis"][0]) == {"issue", "severity", "description", "recommendation", "flags"}


def test_layer_rows_hold_what_was_measured() -> None:
    plan = plan_of([20, 30])
    prior = Prior(np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([0.5, 0.6]), "loss", 32, 2.5)
    scores = replace(
        scores_of(plan, [2.0, 3.0]), clipped_share=np.array([0.0, 0.125]), factor=np.array([[1, 2], [3, 4]])
    )
    report = diagnosis_of(plan, scores=scores, prior=prior).to_json()
    assert report["layers"][1] == {
        "layer_idx": 1,
        "pruning_rate": 0.3,
        "extreme": False,
        "frozen": False,
        "removed_whole": False,
        "importance": 3.0,
        "score_median_before": 3.0,
        "score_median_after": 3.0,
        "gradient_mean": 1.0,
        "gradient_norm": 10.0,
        "gradient_min": 0.5,
        "gradient_max": 2.0,
        "prior_attention": 0.3,
        "prior_mlp": 0.4,
        "prior_layer": 0.6,
        "factor_attention": 3,
        "factor_mlp": 4,
        "clipped_share": 0.125,
    }
    assert report["prior"] == {"method": "loss", "num_windows": 32, "dense_nll_nats_per_token": 2.5}


def test_json_is_standard_whatever_was_measured(tmp_path: Path) -> None:
    plan = plan_of([10] * 5 + [70])
    importance = importance_of(plan, [0.0, float("nan"), float("inf"), 1.0, 1.0, 1.0])
    scores = scores_of(plan, [0.0, float("nan"), float("inf"), -1.0, 1.0, 1.0])
    diagnosis = diagnosis_of(plan, importance=importance, scores=scores)
    write_reports(tmp_path, diagnosis, plan, importance, scores)
    report = strict_json(tmp_path / "gradient_diagnosis.json")
    assert report["gradient_statistics"] == {
        "mean_range": [0.0, 1.0],
        "mean_ratio": None,
        "norm_range": [0.0, 10.0],
        "norm_ratio": None,
    }
    assert report["score_statistics"]["after"]["score_ratio"] is None
    assert report["layers"][1]["gradient_mean"] is None
    strict_json(tmp_path / "pruning_comparison.json")


def test_a_replayed_plan_has_null_statistics_under_the_same_keys(tmp_path: Path) -> None:
    plan = plan_of([20] * 3)
    diagnosis = diagnosis_of(plan, importance=None, scores=None)
    paths = write_reports(tmp_path, diagnosis, plan, None, None)
    assert [path.name for path in paths] == [
        "gradient_diagnosis.json",
        "pruning_comparison.json",
        "pruning_summary_by_layer.txt",
        "groups.parquet",
    ]
    report = strict_json(paths[0])
    assert report["gradient_source"] == "none"
    assert report["gradient_statistics"] == dict.fromkeys(["mean_range", "mean_ratio", "norm_range", "norm_ratio"])
    assert report["score_statistics"]["before"]["score_ratio"] is None
    measured = judge([20] * 3).to_json()
    assert list(report) == list(measured)
    assert [list(row) for row in report["layers"]] == [list(row) for row in measured["layers"]]


def test_mean_ratio_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    plan = plan_of([20] * 2)
    importance = importance_of(plan, [1.0, 4.0])
    paths = write_reports(tmp_path, diagnosis_of(plan, importance=importance), plan, importance, None)
    lines = [line.strip() for line in paths[0].read_text().splitlines() if "mean_ratio" in line]
    assert lines == ['"mean_ratio": 4.0,']


def test_each_layer_has_one_row_in_the_summary() -> None:
    plan = plan_of([10, 10, 91] + [10] * 27)
    rows = summary_by_layer(diagnosis_of(plan), plan).splitlines()
    for layer in range(30):
        assert len([row for row in rows if f"Layer {layer} " in row]) == 1
    (row,) = (row for row in rows if row.startswith("Layer 2 "))
    assert " ".join(row.split()) == "Layer 2 91.0 % 2 → 2 98 → 7 105 → 14 1.000e+00 EXTREME"


def test_summary_marks_removed_and_frozen_layers() -> None:
    plan = one_removed()
    frozen = plan.groups.layer == 0
    diagnosis = diagnose(plan.architecture, None, None, plan, None, frozen, ActiveRemedies())
    text = summary_by_layer(diagnosis, plan)
    rows = {row.split("  ")[0]: row for row in text.splitlines() if row.startswith("Layer ")}
    assert rows["Layer 0"].endswith("-  FROZEN")
    assert rows["Layer 2"].endswith("105 → 0                 -  EXTREME REMOVED")
    assert "Removed 134 of 515 parameters: 26.02 % of all, 44.67 % of the prunable ones." in text


def test_groups_survive_the_round_trip(tmp_path: Path) -> None:
    plan = plan_of([20, 30])
    rng = np.random.default_rng(0)
    importance = importance_of(plan, values=rng.random(200))
    scores = replace(scores_of(plan), score=rng.random(200))
    table = pq.read_table(write_groups(tmp_path / "groups.parquet", plan, importance, scores))
    assert table.column_names == ["layer", "kind", "index", "importance", "cost", "score", "kept"]
    columns = table.to_pydict()
    assert columns["layer"] == [0] * 100 + [1] * 100
    assert columns["kind"] == (["attention"] * 2 + ["mlp"] * 98) * 2
    assert columns["index"] == [0, 1, *range(98)] * 2
    assert columns["importance"] == importance.values.tolist()
    assert columns["cost"] == [1] * 200
    assert columns["score"] == scores.score.tolist()
    assert columns["kept"] == plan.keep.tolist()


def test_groups_without_measurements_are_null(tmp_path: Path) -> None:
    plan = plan_of([20])
    table = pq.read_table(write_groups(tmp_path / "groups.parquet", plan, None, None))
    assert table["importance"].null_count == table["score"].null_count == 100


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    plan = plan_of([10] * 5 + [70])
    for name in ("a", "b"):
        write_reports(tmp_path / name, diagnosis_of(plan), plan, importance_of(plan), scores_of(plan))
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_biases_that_no_group_owns_stay_with_the_layer() -> None:
    shape = reshaped(SHAPE, attention_fixed_params=3, mlp_fixed_params=4)
    row = comparison(plan_of([98 - 10], shape=shape))["layers"][0]
    assert row["mlp"]["pruned"] == 10 + 4
    assert row["attention"]["pruned"] == 2 + 3
    assert row["total"]["pruned"] == 14 + 5 + 5
