"""The rules at their bounds. Layers hold 100 prunable parameters, so a count is a rate in percent."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diagnostics_cases import (
    SHAPE,
    found,
    importance_of,
    issues,
    judge,
    plan_of,
    scores_of,
)
from tables import reshaped

from diagnostics.findings.diagnosis import diagnose
from diagnostics.findings.finding import SEVERITIES
from diagnostics.findings.remedies import ActiveRemedies
from diagnostics.findings.rules_of_the_run import ratio_for

LOG = "--enable_grad_norm --norm_method log"
BY_PRIOR = "--temperature 1.0 --tau 0.0"
EXTREME_ISSUES = {"extreme_layers", "many_extreme_layers", "few_extreme_layers", "early_layers_over_pruned"}


@pytest.mark.parametrize(
    ("points", "threshold"),
    [
        ([20] * 6, 0.5),  # 1.5 · 0.2 = 0.3
        ([40] * 6, 0.6),
        ([60] * 6, 0.9),
        ([80] * 6, 0.9),  # 1.5 · 0.8 = 1.2
    ],
)
def test_threshold(points: list[int], threshold: float) -> None:
    assert judge(points).threshold == pytest.approx(threshold)


def test_a_layer_at_the_threshold_is_not_extreme_and_one_above_is() -> None:
    # r = (50 + 9 · 10) / 1000 = 0.14, threshold 0.5
    assert judge([10] * 9 + [50]).extreme_layers == ()
    assert judge([10] * 9 + [51]).extreme_layers == (9,)


def test_a_threshold_above_one_half_is_compared_without_rounding_noise() -> None:
    # r = 110 / 300, so 1.5 r = 0.55 exactly, but 0.5499999999999999 in floating point
    assert judge([55, 30, 25]).extreme_layers == ()
    assert judge([56, 30, 24]).extreme_layers == (0,)


@pytest.mark.parametrize(
    ("ratio", "issue", "flags"),
    [
        (1001.0, "gradient_scales_differ", LOG),
        (1000.0, "gradient_scales_differ_moderately", "--enable_grad_norm --norm_method sqrt"),
        (100.0, "gradient_scales_differ_moderately", "--enable_grad_norm --norm_method sqrt"),
        (99.9, "gradient_scales_mild", "--temperature 1.0"),
    ],
)
def test_gradient_ratio(ratio: float, issue: str, flags: str) -> None:
    diagnosis = judge([20] * 6, mean=[1e-6 * ratio, *[1e-6] * 5])
    assert {name for name in issues(diagnosis) if name.startswith("gradient")} == {issue}
    assert found(diagnosis, issue).flags == flags


def test_gradient_finding_names_numbers_and_layers() -> None:
    text = found(judge([20] * 4, mean=[2e-6, 1e-6, 5e-3, 1e-3]), "gradient_scales_differ").description
    assert "5,000-fold" in text
    assert "1.00e-06 in layer 1" in text
    assert "5.00e-03 in layer 2" in text


def test_moderate_gradients_name_minmax_as_the_alternative() -> None:
    finding = found(judge([20] * 3, mean=[1, 2, 500]), "gradient_scales_differ_moderately")
    assert "minmax" in finding.recommendation


@pytest.mark.parametrize(
    ("count", "issue"),
    [
        (1, "few_extreme_layers"),
        (2, "few_extreme_layers"),
        (3, "extreme_layers"),
        (5, "extreme_layers"),
        (6, "many_extreme_layers"),
    ],
)
def test_number_of_extreme_layers(count: int, issue: str) -> None:
    # 14 layers, the last ones at 60 %: r = 0.6 · 6 / 14 = 0.26 at most, threshold 0.5
    diagnosis = judge([0] * (14 - count) + [60] * count)
    assert len(diagnosis.extreme_layers) == count
    assert issues(diagnosis) & EXTREME_ISSUES == {issue}


def test_extreme_layers_name_their_remedies() -> None:
    assert found(judge([0] * 11 + [60] * 3), "extreme_layers").flags == LOG
    assert found(judge([0] * 8 + [60] * 6), "many_extreme_layers").flags == f"{LOG} --enable_grad_clip"
    assert found(judge([0] * 13 + [60]), "few_extreme_layers").flags == "--max_block_ratio 0.5"


@pytest.mark.parametrize(("layer", "early"), [(0, True), (4, True), (5, False)])
def test_early_layers_are_0_to_4(layer: int, early: bool) -> None:
    diagnosis = judge([70 if i == layer else 10 for i in range(10)])
    assert ("early_layers_over_pruned" in issues(diagnosis)) == early


def test_early_layers_over_pruned_comes_first_with_both_remedies() -> None:
    diagnosis = judge([10, 10, 91, 92, 93, 10, 10, 10, 10, 10], mean=[1, 1, 1e-4, 1e-4, 1e-4, 1, 1, 1, 1, 1])
    first = diagnosis.findings[0]
    assert (first.issue, first.severity, first.flags) == (
        "early_layers_over_pruned",
        "high",
        f"{LOG} {BY_PRIOR}",
    )
    assert "layer 2 91.0 %, layer 3 92.0 %, layer 4 93.0 %" in first.description
    assert "held-out loss" in first.recommendation
    assert {"gradient_scales_differ", "extreme_layers"} <= issues(diagnosis)


def test_findings_go_from_severe_to_harmless() -> None:
    diagnosis = judge([10] * 8 + [91] * 3, mean=[*[1.0] * 10, 5000], importance={"windows_skipped": 1})
    ranks = [SEVERITIES.index(finding.severity) for finding in diagnosis.findings]
    assert issues(diagnosis) == {"extreme_layers", "gradient_scales_differ", "skipped_windows"}
    assert ranks == [0, 1, 1]


# Health


def test_spread_of_30_points_is_not_healthy() -> None:
    assert "healthy" in issues(judge([10, 20, 39, 20, 20, 20]))
    uneven = judge([10, 20, 40, 20, 20, 20])
    assert "healthy" not in issues(uneven)
    text = found(uneven, "uneven_pruning").description
    assert "30.0 points" in text
    assert "layer 0 loses 10.0 %, layer 2 loses 40.0 %" in text


def test_under_obs_uneven_rates_and_mild_gradients_call_for_nothing() -> None:
    """Its importance is a loss, one unit for all blocks."""
    report = judge([10, 20, 40, 20, 20, 20], active={"criterion": "obs"})
    for issue in ("uneven_pruning", "gradient_scales_mild"):
        assert (found(report, issue).severity, found(report, issue).flags) == ("info", None)
        assert "Nothing to do" in found(report, issue).recommendation


def test_spread_of_30_points_is_not_healthy_whatever_the_rounding() -> None:
    # 0.7 - 0.4 = 0.29999999999999993 in floating point
    assert "healthy" not in issues(judge([40, 70, 50, 50, 50, 50]))


def test_frozen_layers_do_not_count_for_the_spread() -> None:
    points = [0, 35, 35, 35, 35, 35]
    assert "healthy" not in issues(judge(points))
    assert "healthy" in issues(judge(points, frozen_layers=[0]))


def test_three_extreme_layers_are_not_healthy_and_two_may_be() -> None:
    # r = (8 · 65 + n · 91 + ...) / 1000: 1.5 r > 0.9, so the threshold is 0.9 and the spread 26 points
    assert "healthy" in issues(judge([65] * 8 + [91] * 2))
    assert "healthy" not in issues(judge([65] * 7 + [91] * 3))


@pytest.mark.parametrize(("layer", "healthy"), [(1, True), (2, False), (4, False), (5, True)])
def test_an_extreme_layer_among_2_to_4_is_not_healthy(layer: int, healthy: bool) -> None:
    diagnosis = judge([91 if i == layer else 65 for i in range(8)])
    assert diagnosis.extreme_layers == (layer,)
    assert ("healthy" in issues(diagnosis)) == healthy


def test_mild_needs_that_no_layer_is_extreme() -> None:
    assert "gradient_scales_mild" in issues(judge([20] * 10))
    assert "gradient_scales_mild" not in issues(judge([20] * 9 + [70]))


# Remedies that are on already


@pytest.mark.parametrize(
    ("active", "flags"),
    [
        ({}, LOG),
        ({"normalise": "minmax"}, LOG),
        ({"normalise": "log"}, BY_PRIOR),
        ({"normalise": "log", "temperature": 1.0}, "--enable_grad_clip"),
        ({"normalise": "log", "temperature": 0.5, "clip": True}, "--max_block_ratio 0.5"),
        ({"normalise": "log", "temperature": 1.0, "clip": True, "max_block_ratio": 0.5}, None),
    ],
)
def test_extreme_layers_go_up_the_ladder(active: dict[str, Any], flags: str | None) -> None:
    finding = found(judge([0] * 11 + [60] * 3, active=active), "extreme_layers")
    assert finding.flags == flags
    assert ("Log normalisation is on already." in finding.recommendation) == (
        active.get("normalise") == "log" and flags is not None
    )


def test_replacing_a_normalisation_is_said() -> None:
    finding = found(judge([0] * 11 + [60] * 3, active={"normalise": "minmax"}), "extreme_layers")
    assert "instead of minmax" in finding.recommendation


@pytest.mark.parametrize(
    ("active", "flags"),
    [
        ({"normalise": "log"}, BY_PRIOR),
        ({"temperature": 2.0}, LOG),
        ({"normalise": "log", "temperature": 1.0}, "--enable_grad_clip"),
    ],
)
def test_early_layers_get_what_is_missing(active: dict[str, Any], flags: str) -> None:
    assert found(judge([70] + [10] * 9, active=active), "early_layers_over_pruned").flags == flags


def test_unequal_gradients_need_nothing_more_once_normalised_and_even() -> None:
    finding = found(judge([20] * 5, mean=[1, 1, 1, 1, 1e4], active={"normalise": "log"}), "gradient_scales_differ")
    assert finding.flags is None
    assert "on already and no layer is extreme" in finding.recommendation


def test_any_normalisation_stands_for_the_moderate_one() -> None:
    points, mean = [0] * 11 + [60] * 3, [*[1.0] * 13, 500]
    finding = found(judge(points, mean=mean, active={"normalise": "zscore"}), "gradient_scales_differ_moderately")
    assert finding.flags == BY_PRIOR
    assert "Zscore normalisation is on already." in finding.recommendation


def test_mild_gradients_name_nothing_when_a_remedy_is_on() -> None:
    for active in ({"temperature": 1.0}, {"normalise": "log"}, {"clip": True}):
        assert found(judge([20] * 6, active=active), "gradient_scales_mild").flags is None


def test_no_cap_is_named_under_which_the_budget_is_out_of_reach() -> None:
    # Layer 3 alone is open and lost 60 of its 100; capped at one half, 1 KV group and 49 channels could go.
    diagnosis = judge([0, 0, 0, 0, 0, 60], frozen_layers=[0, 1, 2, 3, 4])
    assert found(diagnosis, "few_extreme_layers").flags == LOG


# Transforms and measurements


def test_clipped_share_above_a_quarter() -> None:
    assert "clipping_flattens_layers" not in issues(judge([20] * 2, scores={"clipped_share": np.array([0.25, 0.1])}))
    diagnosis = judge(
        [20] * 2,
        scores={"clipped_share": np.array([0.26, 0.1])},
        active={"clip": True, "clip_percentiles": (5.0, 95.0)},
    )
    finding = found(diagnosis, "clipping_flattens_layers")
    assert "layer 0 (26.0 %)" in finding.description
    assert finding.flags == "--clip_percentile_low 1 --clip_percentile_high 99"


def test_all_zero_layers() -> None:
    assert "layers 1 and 2" in found(judge([20] * 4, scores={"all_zero_layers": (1, 2)}), "all_zero_layers").description


def test_a_small_factor_is_found_only_where_the_block_was_emptied() -> None:
    # Layer 6 loses 70 of 98 channels and its MLP factor 0.01 is under a tenth of the median 1; layer 1's is as small
    # but the layer is not extreme.
    factor = np.ones((10, 2))
    factor[[1, 6], 1] = 0.01
    points = [10, 10, 10, 10, 10, 10, 70, 10, 10, 10]
    finding = found(judge(points, scores={"factor": factor}, active={"temperature": 1.0}), "correction_near_zero")
    assert "empties layer 6" in finding.description
    assert finding.flags == "--temperature 0.5"
    weak = found(judge(points, scores={"factor": factor}, active={"temperature": 0.25}), "correction_near_zero")
    assert weak.flags == "--temperature 0.0"
    factor[6, 1] = 0.1
    assert "correction_near_zero" not in issues(judge(points, scores={"factor": factor}))


def test_gradient_free_criterion() -> None:
    diagnosis = judge([20] * 4, importance={"gradients": None}, active={"criterion": "wanda"})
    assert "wanda uses no gradients" in found(diagnosis, "no_gradient_statistics").description
    assert not any(name.startswith("gradient") for name in issues(diagnosis))


def test_replayed_plan_measures_nothing() -> None:
    plan = plan_of([10] * 5 + [70])
    diagnosis = diagnose(plan.architecture, None, None, plan, None, np.zeros(600, dtype=bool), ActiveRemedies())
    assert "replayed" in found(diagnosis, "no_gradient_statistics").description
    assert diagnosis.extreme_layers == (5,)


def test_zero_and_nan_gradients_have_no_ratio() -> None:
    finding = found(judge([20] * 4, mean=[1.0, 0.0, float("nan"), 2.0]), "gradient_ratio_undefined")
    assert "zero or not finite in layers 1 and 2" in finding.description


def test_second_order_share() -> None:
    assert "second_order_negligible" in issues(judge([20] * 2, importance={"second_order_share": 0.0099}))
    assert "second_order_negligible" not in issues(judge([20] * 2, importance={"second_order_share": 0.01}))


def test_skipped_windows() -> None:
    finding = found(judge([20] * 2, importance={"windows_used": 30, "windows_skipped": 2}), "skipped_windows")
    assert "2 of 32" in finding.description


# The run


def test_budget_gap_of_one_percent() -> None:
    # 6 layers lose 20: 120 removed
    assert "budget_gap" not in issues(judge([20] * 6, budget_params=121))
    finding = found(judge([20] * 6, budget_params=122, gap_reason="floors"), "budget_gap")
    assert "120 of the 122" in finding.description
    assert "2 fewer: floors." in finding.description


def test_single_kv_head_is_said_once() -> None:
    mqa = reshaped(SHAPE, num_kv_heads=1)
    diagnosis = judge([20] * 4, shape=mqa)
    assert [finding.issue for finding in diagnosis.findings].count("single_kv_head") == 1
    assert "every layer" in found(diagnosis, "single_kv_head").description
    assert "single_kv_head" not in issues(judge([20] * 4))


def test_removed_layers_are_named() -> None:
    finding = found(judge([20, 98, 20, 20], removed_layers=(1,)), "layers_removed_whole")
    assert "Layer 1 would have kept less than --epsilon, so it was removed entirely" in finding.description


# Score statistics


def test_score_ratio_is_over_medians_of_layers_that_are_not_frozen() -> None:
    plan = plan_of([20] * 4)
    frozen = plan.groups.layer == 3
    scores = scores_of(plan, [2.0, 1.0, 8.0, 1000.0])
    report = diagnose(plan.architecture, importance_of(plan), scores, plan, None, frozen, ActiveRemedies()).to_json()
    assert report["score_statistics"]["before"] == {"median_range": [1.0, 8.0], "score_ratio": 8.0, "note": None}


def test_median_is_weighted_by_cost() -> None:
    # One KV group of 60 parameters and 40 channels of 1: the group is the median, whatever the channels are.
    shape = reshaped(SHAPE, num_heads=1, num_kv_heads=1, kv_group_params=60, intermediate_size=40)
    plan = plan_of([5], shape=shape)
    s = np.array([3.0, *np.linspace(10, 11, 40)])
    scores = replace(scores_of(plan), per_parameter=s, score=s)
    frozen = np.zeros(41, dtype=bool)
    measured = diagnose(plan.architecture, importance_of(plan), scores, plan, None, frozen, ActiveRemedies()).measured
    assert measured.median_before[0] == 3.0
    assert measured.importance_mean[0] == pytest.approx((60 * 3 + 40 * 10.5) / 100)


def test_score_ratio_is_null_with_a_note_when_a_median_is_not_positive() -> None:
    diagnosis = judge([20] * 3, scores={"by_layer": [1.0, 0.0, -2.0]})
    before = diagnosis.to_json()["score_statistics"]["before"]
    assert before["score_ratio"] is None
    assert before["median_range"] == [-2.0, 1.0]
    assert "2 of 3 layers" in before["note"]
    assert "score_ratio is null before" in found(diagnosis, "score_ratio_undefined").description


def test_a_plan_that_removes_nothing_is_not_praised_and_names_the_ratio_that_acts() -> None:
    # 6 layers of 100 prunable and 5 other parameters, 200 of the embedding: 830; a group holds 1 of them
    nothing: dict[str, Any] = {"requested_ratio": 0.0001, "ratio_of": "total", "budget_params": 0, "removed_params": 0}
    diagnosis = judge([0] * 6, **nothing)
    assert "healthy" not in issues(diagnosis)
    assert "gradient_scales_mild" not in issues(diagnosis)
    finding = found(diagnosis, "nothing_removed")
    assert "--pruning_ratio 0.0001 of total parameters is 0, and the smallest step takes 1." in finding.description
    assert finding.flags == "--pruning_ratio 0.0013 --ratio_of total"  # 0.0013 * 830 = 1.079, 0.0012 * 830 = 0.996


@pytest.mark.parametrize(
    ("params", "whole", "ratio"),
    [(1, 830, 0.0013), (576, 5_657_280, 0.00011), (64, 100, 0.64), (1, 1000, 0.001)],
)
def test_the_smallest_ratio_that_covers_a_step(params: int, whole: int, ratio: float) -> None:
    assert ratio_for(params, whole) == ratio
    assert int(ratio * whole + 1e-9) >= params


def test_what_the_other_options_of_a_run_rule_out_is_not_advised() -> None:
    def refuses(word: str) -> dict[str, Any]:
        return {"refusal": lambda remedy: f"{word} cannot act here" if word in remedy.flags else None}

    both = found(judge([10, 10, 91, 92, 93] + [10] * 7), "early_layers_over_pruned")
    assert both.flags == f"{LOG} {BY_PRIOR}"
    one = found(judge([10, 10, 91, 92, 93] + [10] * 7, active=refuses("--temperature")), "early_layers_over_pruned")
    assert one.flags == LOG
    mild = found(judge([20] * 6, active=refuses("--temperature")), "gradient_scales_mild")
    assert mild.flags is None
    assert "--temperature cannot act here" in mild.recommendation


def test_float32_is_not_advised_to_who_computes_in_it() -> None:
    skipping = {"windows_skipped": 3}
    assert "--dtype float32" in found(judge([20] * 6, importance=skipping), "skipped_windows").recommendation
    finding = found(judge([20] * 6, importance=skipping, active={"dtype": "float32"}), "skipped_windows")
    assert "--dtype" not in finding.recommendation
