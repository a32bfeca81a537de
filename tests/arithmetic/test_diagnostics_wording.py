"""Weighted quantiles against the repetition they stand for, and numbers put into words."""

import numpy as np
import pytest
from diagnostics_cases import architecture

from core.memory import bytes_text
from diagnostics.findings.by_layer import block_quantiles, layer_means, layer_quantiles, quantiles
from diagnostics.wording import name_layers, percent_range, times


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_equal_those_of_the_repeated_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v, w = rng.normal(size=7), rng.integers(0, 5, size=7)
    w[3] = 2
    q = [0.0, 0.05, 0.25, 0.5, 0.77, 1.0]
    assert quantiles(v, w, q) == pytest.approx(np.quantile(np.repeat(v, w), q))


def test_quantiles_of_nothing_are_nan() -> None:
    assert np.isnan(quantiles(np.array([1.0]), np.array([0]), [0.5])).all()
    assert np.isnan(quantiles(np.empty(0), np.empty(0, dtype=np.int64), [0.5])).all()


def test_statistics_leave_out_frozen_groups_unless_the_whole_layer_is() -> None:
    groups = architecture(2).groups
    values = np.where(groups.index < 10, 5.0, 1.0) + 10 * groups.layer
    counted = (groups.layer == 0) & (groups.kind == 1) & (groups.index < 10)
    assert layer_quantiles(groups, values, counted, [0.5])[:, 0].tolist() == [5.0, 11.0]
    # Layer 1 counts in full: 2 KV groups and 10 channels of 15, 88 channels of 11
    assert layer_means(groups, values, counted) == pytest.approx([5.0, (12 * 15 + 88 * 11) / 100])


def test_values_that_are_not_finite_are_left_out() -> None:
    groups = architecture(1).groups
    values = np.where(groups.kind == 0, np.inf, 2.0)
    assert layer_means(groups, values, np.ones(100, dtype=bool)).tolist() == [2.0]
    blocks = block_quantiles(groups, values, [0.5])
    assert np.isnan(blocks[0, 0, 0])
    assert blocks[0, 1, 0] == 2.0


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([3], "layer 3"),
        ([2, 3], "layers 2 and 3"),
        ([2, 3, 4], "layers 2-4"),
        ([0, 2, 3, 4, 9], "layers 0, 2-4 and 9"),
    ],
)
def test_layers_are_named_in_spans(layers: list[int], text: str) -> None:
    assert name_layers(layers) == text


def test_ranges_of_percent() -> None:
    assert percent_range([0.911, 0.909], 0) == "91 %"
    assert percent_range([0.1, 0.345]) == "10.0 to 34.5 %"


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0, "0"), (1.0, "1.00"), (45.31, "45.3"), (12345.6, "12,346"), (999_999.4, "999,999"), (4.1e9, "4.1e+09")],
)
def test_ratios(ratio: float, text: str) -> None:
    assert times(ratio) == text


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (11_430_000, "11.4 MB"), (1.4e13, "14.00 TB")])
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text
