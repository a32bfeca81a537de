"""Which of several plans of equal size to prune with, by measured loss and by how healthy they are.

Each plan is tried on the same windows. With d_n the difference of two plans' losses in window n, N windows,

    mean(d)                     how much one loses to the other, nats per token
    se(d) = σ(d) / √N           its standard error, σ with N - 1 in the denominator (0 where N is 1)

1. Plans whose mean loss is above the baseline's are out, and so are those whose loss is not finite.
2. Of the rest, those within noise of the best are as good as it: mean(d) ≤ se(d) against it.
3. Among these a healthy plan goes before one that is not, then the lower loss, then the order of trial.

Paired differences, because windows differ from one another far more than plans do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Trial:
    """One plan that was tried. name: for people. flags: that give this plan on an otherwise equal command line.

    named_by: issues of the findings that name it. nll: float64 (N,), nats per token of each window.
    healthy, num_extreme, spread: the plan's shape (docs/judging.md, Findings). of_total: removed / all parameters.
    """

    name: str
    flags: str
    named_by: tuple[str, ...]
    nll: np.ndarray
    healthy: bool
    num_extreme: int
    spread: float
    of_total: float

    @property
    def mean(self) -> float:
        """Nats per token over all windows, which are of one length; float64."""
        return float(np.mean(self.nll))


@dataclass(frozen=True)
class Choice:
    """winner: position in ``trials``, 0 the baseline. contenders: those within noise of the best, the winner among
    them. reason: one sentence."""

    trials: tuple[Trial, ...]
    winner: int
    contenders: tuple[int, ...]
    reason: str

    def to_json(self) -> list[dict[str, Any]]:
        best = min(self.contenders, key=lambda i: self.trials[i].mean)
        return [
            {
                "name": trial.name,
                "flags": trial.flags,
                "named_by": trial.named_by,
                "nll_nats_per_token": trial.mean,
                "minus_baseline": _difference(trial, self.trials[0]),
                "minus_best": _difference(trial, self.trials[best]),
                "within_noise_of_best": i in self.contenders,
                "healthy": trial.healthy,
                "num_extreme_layers": trial.num_extreme,
                "rate_spread": trial.spread,
                "achieved_of_total": trial.of_total,
                "taken": i == self.winner,
            }
            for i, trial in enumerate(self.trials)
        ]


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of first - second, both float64 (N,)."""
    difference = first - second
    error = float(np.std(difference, ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(np.mean(difference)), error


def choose(trials: Sequence[Trial]) -> Choice:
    """The plan to prune with; the first trial is the baseline, which wins where nothing finite is no worse."""
    baseline = trials[0]
    finite = [i for i, trial in enumerate(trials) if np.isfinite(trial.nll).all()]
    if not finite:
        return Choice(tuple(trials), 0, (0,), "No plan gives a finite loss, so the baseline stays.")
    eligible = [i for i in finite if 0 not in finite or trials[i].mean <= baseline.mean]
    best = min(eligible, key=lambda i: trials[i].mean)
    contenders = tuple(i for i in eligible if within_noise(trials[i], trials[best]))
    winner = min(contenders, key=lambda i: (not trials[i].healthy, trials[i].mean))
    return Choice(tuple(trials), winner, contenders, _reason(trials, winner, best))


def within_noise(trial: Trial, best: Trial) -> bool:
    mean, error = paired(trial.nll, best.nll)
    return mean <= error


def _reason(trials: Sequence[Trial], winner: int, best: int) -> str:
    if winner == best:
        sentence = "It has the lowest loss"
        sentence += (
            ", and nothing that was tried loses less." if winner == 0 else f", {_against(trials[winner], trials[0])}."
        )
        return sentence
    mean, error = paired(trials[winner].nll, trials[best].nll)
    return (
        f"It is healthy, and {trials[best].name}, which is not, loses less by {mean:.4f} ± {error:.4f} nats/token: "
        "within noise."
    )


def _against(trial: Trial, baseline: Trial) -> str:
    if not np.isfinite(baseline.nll).all():
        return "and the baseline's is not finite"
    mean, error = paired(trial.nll, baseline.nll)
    return f"{-mean:.4f} ± {error:.4f} nats/token under the baseline's"


def _difference(trial: Trial, other: Trial) -> dict[str, float]:
    mean, error = paired(trial.nll, other.nll)
    return {"mean": mean, "standard_error": error}
