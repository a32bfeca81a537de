"""The correction by block priors, every expected value worked out beside it."""

import math

import numpy as np
import pytest
from tables import cheap_groups, prior, score

from core.errors import NumericalError, UsageError


def test_correction_by_hand() -> None:
    # Δ = e - 1 → B = 1; Δ = e² - 1 → B = 2; T = 2 → factors 1 and 4. s = 5, 2 3 | 1, 1 2.
    e = math.e
    groups = cheap_groups((1, 2), (1, 2))
    priors = prior([[e - 1, e**2 - 1], [e**2 - 1, e - 1]], [0, 0])
    scores = score(groups, [10, 2, 3, 2, 1, 2], temperature=2, prior=priors)
    assert scores.factor == pytest.approx(np.array([[1, 4], [4, 1]]))
    assert scores.score == pytest.approx([5, 8, 12, 4, 1, 2])
    assert scores.order.tolist() == [4, 5, 3, 0, 1, 2]
    assert scores.tau_used == 0


def test_no_temperature_no_correction() -> None:
    groups = cheap_groups((1, 2), (1, 2))
    plain = score(groups, [10, 2, 3, 2, 1, 2], normalise="zscore")
    switched_off = score(groups, [10, 2, 3, 2, 1, 2], normalise="zscore", prior=prior([[1, 2], [3, 4]], [1, 2]))
    assert switched_off.score.tolist() == plain.score.tolist()
    assert switched_off.score.min() < 0  # not shifted
    assert (switched_off.factor, switched_off.tau_used, switched_off.uses_layer_prior) == (None, None, None)


@pytest.mark.parametrize(
    ("tau", "threshold", "uses_layer"),
    [
        (0.0, 0, [False] * 4),  # block only, also for the layer whose Δ is below 0
        (math.inf, math.inf, [True] * 4),
        (0.2, 0.2, [True, True, False, False]),  # strictly below
        ("auto", 0.05, [True, False, False, False]),  # -0.1 0.1 0.2 0.9, position 0.75
    ],
)
def test_tau_gates_the_prior_a_layer_uses(tau: float | str, threshold: float, uses_layer: list[bool]) -> None:
    groups = cheap_groups(*[(1, 1)] * 4)
    layer = [0.1, -0.1, 0.2, 0.9] if tau != "auto" else [-0.1, 0.1, 0.2, 0.9]
    scores = score(groups, [1] * 8, temperature=1, tau=tau, prior=prior([[1, 2]] * 4, layer))
    assert scores.tau_used == pytest.approx(threshold)
    assert scores.uses_layer_prior is not None
    assert scores.factor is not None
    assert scores.uses_layer_prior.tolist() == uses_layer
    same_for_both = scores.factor[:, 0] == scores.factor[:, 1]
    assert same_for_both.tolist() == uses_layer


def test_auto_tau_and_median_leave_frozen_layers_out() -> None:
    groups = cheap_groups(*[(1, 1)] * 3)
    priors = prior([[90, 90], [1, 3], [-1, 3]], [99, 0.4, 0.8])
    scores = score(groups, [1] * 6, frozen=[True] * 2 + [False] * 4, temperature=1, tau="auto", prior=priors)
    assert scores.tau_used == pytest.approx(0.5)  # a quarter of the way from 0.4 to 0.8
    # Layer 1 uses 0.4 twice; the median of 0.4 0.4 -1 3 is 0.4, and the floor 0.004.
    assert scores.factor is not None
    assert scores.factor[1:].ravel() == pytest.approx(np.log([1.4, 1.4, 1.004, 4]))


def test_a_block_whose_removal_helps_is_floored_not_negative() -> None:
    # Δ = -3 1 | 2 3: median 1.5, floor 0.015.
    groups = cheap_groups((1, 1), (1, 1))
    scores = score(groups, [2, 1, 2, 1], temperature=0.5, prior=prior([[-3, 1], [2, 3]], [1, 1]))
    assert scores.factor is not None
    assert scores.factor[0, 0] == pytest.approx(math.log(1.015) ** 0.5)
    assert scores.factor[0, 1] == pytest.approx(math.log(2) ** 0.5)
    assert scores.order[0] == 0
    assert scores.notes == ["correction: 1 blocks with a prior below 0.015 use 0.015"]


def test_a_median_prior_below_zero_gives_way_to_that_of_the_positive_ones() -> None:
    groups = cheap_groups((1, 1), (1, 1))
    scores = score(groups, [1, 1, 1, 1], temperature=1, prior=prior([[-3, -1], [-2, 4]], [1, 1]))
    assert scores.factor is not None
    assert scores.factor.ravel() == pytest.approx([math.log(1.04)] * 3 + [math.log(5)])


def test_without_any_positive_prior_nothing_is_corrected() -> None:
    groups = cheap_groups((1, 1), (1, 1))
    scores = score(groups, [8, 1, 2, 3], temperature=1, prior=prior([[-3, -1], [0, 0]], [1, 1]))
    assert scores.factor is not None
    assert (scores.factor == 1).all()
    assert scores.notes == ["correction: no block has a positive prior, so every factor is 1"]


def test_negative_scores_are_shifted_before_the_factor() -> None:
    # Equal factors must leave the ranking alone; unshifted, a factor above 1 would push negative scores down.
    groups = cheap_groups((1, 2), (1, 2))
    plain = score(groups, [8, 1, 9, 3, 2, 5], normalise="zscore")
    same = score(groups, [8, 1, 9, 3, 2, 5], normalise="zscore", temperature=1, prior=prior([[4, 4]] * 2, [4, 4]))
    assert same.order.tolist() == plain.order.tolist()
    assert same.score == pytest.approx((plain.score - plain.score.min()) * math.log(5))
    # Layer 1 matters more: all of its groups but the lowest move up, none moves below an unimportant one.
    raised = score(
        groups, [8, 1, 9, 3, 2, 5], normalise="zscore", temperature=3, prior=prior([[1, 1], [50, 50]], [0, 0])
    )
    assert (raised.score >= 0).all()
    assert [row for row in raised.order if row >= 3] == [row for row in plain.order if row >= 3]


def test_prior_must_be_there_and_finite() -> None:
    groups = cheap_groups((1, 1), (1, 1))
    with pytest.raises(ValueError, match="needs a prior"):
        score(groups, [1] * 4, temperature=1)
    with pytest.raises(NumericalError, match="prior of layer 1 attention is nan"):
        score(groups, [1] * 4, temperature=1, prior=prior([[1, 1], [math.nan, 1]], [1, 1]))
    with pytest.raises(NumericalError, match="prior of layer 0 is inf"):
        score(groups, [1] * 4, temperature=1, prior=prior([[1, 1], [1, 1]], [math.inf, 1]))


@pytest.mark.parametrize("temperature", [5000, 300])
def test_a_temperature_out_of_range(temperature: float) -> None:
    groups = cheap_groups((1, 1), (1, 1))
    with pytest.raises(UsageError, match=f"--temperature {temperature} takes"):
        score(groups, [1] * 4, temperature=temperature, prior=prior([[3, 3], [3, -1]], [1, 1]))
