"""Scores on tables of a few groups, every expected value worked out beside it."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import METHODS, architecture, cheap_groups, prior, score

from core.errors import NumericalError, UsageError
from core.transforms import Transforms
from core.weighted import mean, median, percentiles, sigma
from importance.scoring import score_groups
from pruning.planning import Limits, frozen_groups

# Cost-weighted statistics


def test_weighted_statistics_by_hand() -> None:
    v, w = np.array([9.0, 4.0, 1.0]), np.array([1, 2, 1])  # repeated and sorted: 1 4 4 9
    assert median(v, w) == 4
    assert percentiles(v, w, 0, 25, 100) == [1, 3.25, 9]  # 25 %: position 0.75 between 1 and 4
    assert mean(v, w) == 4.5  # (1 + 8 + 9) / 4
    assert sigma(v, w) == pytest.approx(math.sqrt(8.25))  # (12.25 + 2·0.25 + 20.25) / 4


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 9)), min_size=1).filter(lambda rows: any(w for _, w in rows)),
    st.floats(0, 100),
)
def test_percentile_is_that_of_the_repeated_values(rows: list[tuple[float, int]], q: float) -> None:
    v, w = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    assert percentiles(v, w, q)[0] == pytest.approx(np.percentile(np.repeat(v, w), q), rel=1e-9, abs=1e-6)


# Each transform


def test_importance_counts_per_parameter() -> None:
    # KV groups of 400 parameters, channels of 2. Raw, the KV groups would rank last; per parameter they rank
    # first: s = 8/400, 4/400, 1/2, 3/2.
    groups = architecture((2, 2), kv=400, channel=2).groups
    scores = score(groups, [8, 4, 1, 3])
    assert scores.per_parameter.tolist() == [0.02, 0.01, 0.5, 1.5]
    assert scores.order.tolist() == [1, 0, 2, 3]
    assert scores.order.dtype == np.int64
    assert scores.score.tolist() == scores.per_parameter.tolist()
    assert scores.clipped_share is None
    assert scores.factor is None


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # s = 4 (weight 2), 1, 9: median 4, mean 4.5, σ² 8.25, as above.
        # log: y = ln 2, ln 1.25, ln 3.25, mean (2·0.693147 + 0.223144 + 1.178655)/4 = 0.697023
        ("log", [0.994439, 0.320138, 1.690984]),
        # sqrt: y = 2, 1, 3, mean 2
        ("sqrt", [1.0, 0.5, 1.5]),
        # minmax: 3/8, 0, 8/8
        ("minmax", [0.375, 0.0, 1.0]),
        # zscore: -0.5, -3.5, 4.5 over √8.25 = 2.872281
        ("zscore", [-0.174078, -1.218544, 1.566699]),
    ],
)
def test_normalisation_by_hand(method: str, expected: list[float]) -> None:
    groups = cheap_groups((1, 2))
    assert score(groups, [8, 1, 9], normalise=method).score == pytest.approx(expected, abs=1e-6)


def test_clip_by_hand() -> None:
    # Layer 0: two KV groups of 2 parameters, s = 1 8; layer 1: one KV group, s = 5, channels, s = 0 2 3 10.
    # Repeated: 0 1 1 2 3 5 5 8 8 10, positions 0 to 9. 10 %: position 0.9 → 0.9. 90 %: position 8.1 → 8.2.
    groups = cheap_groups((2, 0), (1, 4))
    scores = score(groups, [2, 16, 10, 0, 2, 3, 10], clip=True, clip_low=10, clip_high=90)
    assert scores.score == pytest.approx([1, 8, 5, 0.9, 2, 3, 8.2])
    assert scores.per_parameter.tolist() == [1, 8, 5, 0, 2, 3, 10]
    assert scores.clipped_share == pytest.approx([0, 2 / 6])  # channels 0 and 10 of layer 1, which costs 2 + 4


def test_clip_comes_before_normalise() -> None:
    # s = 0 1 2 3 100, the top clipped at 75 % (position 3): 0 1 2 3 3, so minmax divides by 3, not by 100.
    groups = cheap_groups((0, 5))
    scores = score(groups, [0, 1, 2, 3, 100], clip=True, clip_low=0, clip_high=75, normalise="minmax")
    assert scores.score == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert scores.order.tolist() == [0, 1, 2, 3, 4]


# Frozen groups


def test_frozen_groups_influence_no_statistic() -> None:
    groups = cheap_groups((1, 2), (1, 2))
    frozen = [False] * 3 + [True] * 3
    small, huge = [8.0, 1, 9, 1, 1, 2], [8, 1, 9, 1e9, 1e9, 2e9]
    options: dict[str, Any] = {"clip": True, "clip_low": 20.0, "clip_high": 80.0, "normalise": "zscore"}
    expected = score(groups, small, frozen=frozen, **options)
    scores = score(groups, huge, frozen=frozen, **options)
    assert scores.score[:3].tolist() == expected.score[:3].tolist()
    assert scores.score[:3].tolist() != score(groups, huge, **options).score[:3].tolist()
    assert scores.clipped_share is not None
    assert scores.clipped_share[1] == 0


def test_a_frozen_group_inside_a_layer_is_mapped_by_the_others_statistics() -> None:
    # Only the channels count: min 1, max 9. The KV group's s = 13 lands at 12/8.
    groups = cheap_groups((1, 2))
    scores = score(groups, [26, 1, 9], frozen=[True, False, False], normalise="minmax")
    assert scores.score.tolist() == [1.5, 0, 1]


def test_a_frozen_layer_is_scored_by_its_own_statistics() -> None:
    groups = cheap_groups((1, 2), (1, 2))
    frozen = [True] * 3 + [False] * 3
    assert score(groups, [8, 1, 9, 1, 2, 3], frozen=frozen, normalise="sqrt").score[:3].tolist() == [
        1,
        0.5,
        1.5,
    ]


# Corner cases that belong to the definition


def test_ties_rank_by_unclipped_value_then_layer_kind_index() -> None:
    # s: layer 0: KV 2, channels 1 2; layer 1: KV 1, channels 2 0. Rows 0 to 5.
    groups = cheap_groups((1, 2), (1, 2))
    assert score(groups, [4, 1, 2, 2, 2, 0]).order.tolist() == [5, 1, 3, 0, 2, 4]
    # Clipped to percentiles [0, 12.5] of 0 1 1 1 2 2 2 2, each 1 and 2 becomes 0.875: s itself breaks ties.
    clipped = score(groups, [4, 1, 2, 2, 2, 0], clip=True, clip_low=0, clip_high=12.5)
    assert clipped.score.tolist() == [0.875] * 5 + [0]
    assert clipped.order.tolist() == [5, 1, 3, 0, 2, 4]


@pytest.mark.parametrize(("method", "value"), [("log", 1), ("sqrt", 1), ("minmax", 0.5), ("zscore", 0)])
def test_constant_layer_gets_the_value_of_its_mean(method: str, value: float) -> None:
    groups = cheap_groups((1, 2), (1, 2))
    assert score(groups, [6, 3, 3, 2, 5, 9], normalise=method).score[:3].tolist() == [value] * 3
    # Constant as far as it counts: a frozen group that differs does not change that.
    frozen = [True] + [False] * 5
    assert score(groups, [8, 3, 3, 2, 5, 9], frozen=frozen, normalise=method).score[:3].tolist() == [value] * 3


def test_median_zero_gives_way_to_the_smallest_positive_value() -> None:
    # s = 0 0 0 2 6: median 0, so y = ln(1 + s/2) = 0 0 0 ln 2 ln 4; mean (ln 2 + 2 ln 2)/5 = 0.6 ln 2.
    groups = cheap_groups((0, 5))
    assert score(groups, [0, 0, 0, 2, 6], normalise="log").score == pytest.approx([0, 0, 0, 1 / 0.6, 2 / 0.6])


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_zero_layers_rank_first(method: str | None, temperature: float) -> None:
    # Layer 0 holds a zero too, but not only zeros: it has to wait for layer 1.
    groups = cheap_groups((1, 2), (1, 2), (1, 2))
    priors = prior([[0.1, 0.1], [5, 9], [0.1, 0.1]], [0.1, 9, 0.1])
    scores = score(groups, [0, 1, 2, 0, 0, 0, 10, 5, 6], normalise=method, temperature=temperature, prior=priors)
    assert scores.order[:3].tolist() == [3, 4, 5]
    assert scores.order[3] == 0
    assert scores.all_zero_layers == (1,)
    assert scores.score[3] == min(0, scores.score.min())
    assert "every importance is 0 in layers 1: their groups rank below all others" in scores.notes


def test_frozen_zeros_make_no_all_zero_layer() -> None:
    groups = cheap_groups((1, 2), (1, 2))
    assert score(groups, [0, 0, 0, 1, 2, 3], frozen=[True] * 3 + [False] * 3).all_zero_layers == ()
    assert score(groups, [5, 0, 0, 1, 2, 3], frozen=[True] + [False] * 5).all_zero_layers == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("frozen", [True, False])
def test_importance_must_be_finite_and_not_negative(value: float, frozen: bool) -> None:
    groups = cheap_groups((1, 2), (1, 2))
    with pytest.raises(NumericalError, match=r"layer 1 mlp group 1 is .* \(1 of 6 groups.*try --dtype"):
        score(groups, [1, 1, 1, 1, 1, value], frozen=[False] * 5 + [frozen])


def test_importances_too_far_apart_for_float64() -> None:
    with pytest.raises(NumericalError, match="layer 0 are spread too widely for --norm_method log"):
        score(cheap_groups((0, 3)), [1e-310, 1e-310, 1], normalise="log")


def test_nothing_to_score_when_all_is_frozen() -> None:
    with pytest.raises(ValueError, match="every group is frozen"):
        score(cheap_groups((1, 2)), [1, 2, 3], frozen=[True] * 3)


# Options and inputs


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"clip_low": 95.0, "clip_high": 5.0}, "--clip_percentile_low 95 --clip_percentile_high 5"),
        ({"clip_low": 50.0, "clip_high": 50.0}, "--clip_percentile_low 50"),
        ({"clip_low": -1.0}, "--clip_percentile_low -1"),
        ({"clip_high": 101.0}, "--clip_percentile_high 101"),
        ({"clip_low": math.nan}, "--clip_percentile_low nan"),
        ({"normalise": "softmax"}, "--norm_method softmax: needs one of log, minmax, zscore, sqrt"),
        ({"temperature": -1.0}, "--temperature -1"),
        ({"temperature": math.inf}, "--temperature inf"),
        ({"tau": -0.1}, "--tau -0.1"),
        ({"tau": math.nan}, "--tau nan"),
        ({"tau": "some"}, "--tau some"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        Transforms(**options)
    assert flag in str(caught.value)


def test_scoring_leaves_its_inputs_alone_and_repeats_itself() -> None:
    model = architecture((2, 4), (2, 4))
    importance = np.random.default_rng(1).random(12)
    copy, frozen = importance.copy(), frozen_groups(model, Limits(freeze_first=1))
    options = Transforms(clip=True, normalise="zscore", temperature=1, tau="auto")
    priors = prior([[1, 2], [3, 4]], [5, 6])
    first = score_groups(model.groups, importance, options, frozen=frozen, prior=priors)
    again = score_groups(model.groups, importance, options, frozen=frozen, prior=priors)
    assert importance.tobytes() == copy.tobytes()
    assert first.score.tobytes() == again.score.tobytes()
    assert sorted(first.order.tolist()) == list(range(12))
