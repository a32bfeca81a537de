"""What the transforms must not change, and what they must: over random tables, and on the case they exist for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import METHODS, architecture, cheap_groups, in_layer, prior, score

from core.groups import Architecture, LayerShape
from pruning.planning import Limits, plan_removal

RAW = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9), st.sampled_from([1.0, 2.0])), min_size=12, max_size=12)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("clip", [False, True])
@settings(max_examples=60, deadline=None)
@given(raw=RAW, low=st.floats(0, 60), width=st.floats(1, 40))
def test_order_inside_a_layer_never_changes(
    method: str | None, clip: bool, raw: list[float], low: float, width: float
) -> None:
    groups = cheap_groups((2, 4), (2, 4))
    plain = score(groups, raw)
    changed = score(groups, raw, normalise=method, clip=clip, clip_low=low, clip_high=low + width)
    for layer in range(2):
        assert in_layer(groups, changed.order, layer) == in_layer(groups, plain.order, layer)
    for row, after in pairwise(in_layer(groups, changed.order, 0)):
        assert changed.score[row] <= changed.score[after]


def test_a_logarithm_that_dips_does_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # Some vectorised logarithms return a little less for the larger of two neighbours.
    dips = np.array([1.0, 1 - 1e-15, 1.0, 1.0])
    monkeypatch.setattr(np, "log1p", lambda x: 1 + 0 * x * dips - (1 - dips))
    groups = cheap_groups((0, 4))
    scores = score(groups, [1, 2, 3, 4], normalise="log")
    assert scores.order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=50, deadline=None)
@given(raw=RAW, power=st.integers(-400, 400))
def test_the_scale_of_a_layer_does_not_matter(method: str, raw: list[float], power: int) -> None:
    # c = 4^power, so that neither the quotients nor the square roots round differently; down to where s² is 0.
    groups = cheap_groups((2, 4), (2, 4))
    scaled = [value * 4.0**power if groups.layer[row] == 1 else value for row, value in enumerate(raw)]
    before, after = score(groups, raw, normalise=method), score(groups, scaled, normalise=method)
    assert after.score.tolist() == before.score.tolist()
    if len(set(before.score)) == len(groups):  # ties rank by s, whose scale did change
        assert after.order.tolist() == before.order.tolist()


def test_the_scale_of_a_layer_matters_without_normalisation() -> None:
    groups = cheap_groups((0, 2), (0, 2))
    assert score(groups, [1, 4, 2, 3]).order.tolist() != score(groups, [1, 4, 2e-4, 3e-4]).order.tolist()


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("clip", [False, True])
def test_normalisation_spares_layers_whose_gradients_are_small(method: str | None, clip: bool) -> None:
    # 32 layers; importances of layers 2 to 4 are 10,000 times smaller; these hold 9 % of the groups, 20 % may go.
    shape = LayerShape(16, 8, 4, 224, 80, 12)
    model = Architecture("mistral", 16, 1_000_000, (shape,) * 32)
    groups = model.groups
    importance = groups.cost * np.random.default_rng(0).lognormal(0, 1, len(groups))
    importance[(groups.layer >= 2) & (groups.layer <= 4)] *= 1e-4
    scores = score(groups, importance.tolist(), normalise=method, clip=clip)
    plan = plan_removal(model, scores.order, ratio=0.2, ratio_of="prunable", limits=Limits())
    rates = plan.layer_rates()[2:5]
    if clip and method is not None:
        # Clipping first flattens just these layers, which lie below the 5th percentile or next to it. The clipped
        # share says so, and the order inside every layer stays.
        assert scores.clipped_share is not None
        assert (scores.clipped_share[2:5] > 0.25).all()
        plain = score(groups, importance.tolist())
        for layer in range(32):
            assert in_layer(groups, scores.order, layer) == in_layer(groups, plain.order, layer)
    else:
        assert (rates > 0.9).all() if method is None else (rates < 0.5).all()


@settings(max_examples=60, deadline=None)
@given(
    raw=RAW,
    deltas=st.lists(st.floats(-1, 20).map(lambda delta: round(delta, 6)), min_size=4, max_size=4),
    temperature=st.floats(0.1, 5),
)
@pytest.mark.parametrize("method", [None, *METHODS])
def test_correction_keeps_the_order_inside_a_block(
    method: str | None, raw: list[float], deltas: list[float], temperature: float
) -> None:
    groups = cheap_groups((2, 4), (2, 4))
    priors = prior([deltas[:2], deltas[2:]], [1, 1])
    plain = score(groups, raw)
    corrected = score(groups, raw, normalise=method, temperature=temperature, prior=priors)
    assert (corrected.score >= 0).all()
    for block in range(4):
        expected = [row for row in plain.order if groups.block[row] == block]
        assert [row for row in corrected.order if groups.block[row] == block] == expected


def test_the_four_methods_give_four_plans() -> None:
    # Three layers of four channels, one parameter each, of which 4 may go (stars):
    #
    #   s        4     5     6     7   |  0     1     2     40  |  1     4     9     16
    #   log      0.79  0.94  1.07  1.19| *0    *0.44  0.72  2.84| *0.21 *0.70  1.27  1.82
    #   sqrt     0.86  0.96  1.05  1.13| *0    *0.46 *0.65  2.89| *0.40  0.80  1.20  1.60
    #   minmax  *0     0.33  0.67  1   | *0    *0.02  0.05  1   | *0     0.20  0.53  1
    #   zscore  *-1.34 -0.45 0.45  1.34| *-0.64 -0.58 -0.52 1.73| *-1.14 *-0.62 0.26 1.50
    model = architecture((0, 4), (0, 4), (0, 4), channel=1)
    removed = {}
    for method in METHODS:
        order = score(model.groups, [4, 5, 6, 7, 0, 1, 2, 40, 1, 4, 9, 16], normalise=method).order
        plan = plan_removal(model, order, ratio=0.34, ratio_of="prunable", limits=Limits())
        removed[method] = np.flatnonzero(~plan.keep).tolist()
    assert removed == {"log": [4, 5, 8, 9], "sqrt": [4, 5, 6, 8], "minmax": [0, 4, 5, 8], "zscore": [0, 4, 8, 9]}
