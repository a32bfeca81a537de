"""What a way over the windows counts: windows that are in, those left out for NaN or Inf, the scale of gradients."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from core import ranks
from core.errors import NumericalError
from core.measured import GradientStatistics
from importance.gradient_scale import LayerGradients

if TYPE_CHECKING:
    from importance.over_windows import Measurement

RARE = 0.05  # share of windows that may yield NaN or Inf before a run stops


@dataclass(frozen=True)
class Tally:
    """windows: numbers of even and odd ones that count. skipped: windows with NaN or Inf.

    gradients: of the measurement's ``norms``, zeros in layers that it did not watch.
    """

    windows: tuple[int, int]
    skipped: int
    gradients: GradientStatistics | None

    @property
    def used(self) -> int:
        return sum(self.windows)

    def halves(self, even: np.ndarray, total: np.ndarray) -> np.ndarray | None:
        return halves_of(even, total, *self.windows)


def halves_of(even: np.ndarray, total: np.ndarray, num_even: int, num_odd: int) -> np.ndarray | None:
    """float64 (2, G): means over the even and over the odd windows, from sums over the even ones and over all.

    None where a half has no window. Rounding of the difference never makes an importance negative.
    """
    if not (num_even and num_odd):
        return None
    return np.stack([even / num_even, np.maximum(total - even, 0.0) / num_odd])


class NonFiniteGuard:
    """Counts windows that yielded NaN or Inf; raises NumericalError once they are no longer rare."""

    def __init__(self, num_windows: int, measurement: "Measurement", dtype: torch.dtype) -> None:
        self.allowed, self.measurement, self.dtype = int(RARE * num_windows), measurement, dtype
        self.left_out: list[tuple[list[int], bool]] = []

    def skip(self, bad_layers: list[int], loss_is_finite: bool) -> None:
        """Leave one window out. bad_layers: those in which something was NaN or Inf."""
        self.left_out.append((bad_layers, loss_is_finite))
        self.insist_on_few(self.left_out)

    def insist_on_few(self, left_out: list[tuple[list[int], bool]]) -> None:
        """NumericalError, about the last of them, where these windows are too many."""
        if left_out and not self.measurement.repeatable:
            count = "which cannot be taken out of a sum of gradients"
        elif len(left_out) > self.allowed:
            count = f"in {len(left_out)} windows so far, {self.allowed} tolerated"
        else:
            return
        bad_layers, loss_is_finite = left_out[-1]
        layers = f"layer{'s' * (len(bad_layers) > 1)} {', '.join(map(str, bad_layers[:8]))}"
        where = f"the {self.measurement.sees} of {layers}" if bad_layers else "the loss"
        raise NumericalError(f"NaN or Inf in {where} ({count}); {self._way_out(loss_is_finite)}")

    def _way_out(self, loss_is_finite: bool) -> str:
        if self.dtype != torch.float32:
            return "try --dtype float32"
        if not loss_is_finite or self.measurement.norms is None:
            return "the model computes it in float32: check that the checkpoint is intact"
        if not self.measurement.repeatable:
            return "try --gradient_reduction sequence"
        return "try --importance_method wanda, which needs no gradients"


def tally_of_all(windows: tuple[int, int], guard: NonFiniteGuard, gradients: LayerGradients | None, what: str) -> Tally:
    """Of all processes, from what each has counted. NumericalError where they leave out too many windows together."""
    counts, left_out, seen = zip(*ranks.gathered((windows, guard.left_out, gradients), what), strict=True)
    even, odd = (sum(numbers) for numbers in zip(*counts, strict=True))
    out = list(chain.from_iterable(left_out))
    guard.insist_on_few(out)
    norms, statistics = guard.measurement.norms, None
    if norms is not None:
        total = LayerGradients(norms.num_layers)
        for part in seen:
            total.add_those_of(part)
        statistics = total.statistics(norms.source, even + odd)
    return Tally((even, odd), len(out), statistics)
