"""Plans tried on calibration text that importance did not see, their removed groups silenced by hooks; no surgery.

What is left is repaired as the run will repair it, then put back: a plan is worth what it is worth when delivered.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from calibration import calibration_windows
from cli.job import Job
from cli.measured import ModelOnDemand
from cli.repair import asked_repair
from core.families import Family
from core.plan import PruningPlan
from core.windows import TokenWindows
from diagnostics.comparison.ranking import EQUAL_SIZE
from diagnostics.trials import paired
from evaluation.perplexity import window_nll
from models.architecture import decoder_layers
from models.reference import without_removed_groups
from pruning.repair import repaired_for_now

TRIAL_WINDOWS = 16


class HeldOut:
    """The windows of a run that plans are tried on, read when first needed, and every loss measured on them once."""

    def __init__(
        self, model: ModelOnDemand, job: Job, options: argparse.Namespace, calibration: TokenWindows | None
    ) -> None:
        """calibration: what repairs are fitted on; None where the run has no such windows and repairs nothing."""
        self.model, self.job, self.options, self.calibration = model, job, options, calibration
        self._windows: TokenWindows | None = None
        self._losses: dict[bytes, np.ndarray] = {}

    @property
    def windows(self) -> TokenWindows:
        if self._windows is None:
            self._windows = trial_windows(self.job, self.options)
        return self._windows

    def loss(self, plan: PruningPlan, name: str) -> np.ndarray:
        """float64 (N,): nats per token of each window under ``plan``."""
        mask = plan.keep.tobytes()
        if mask not in self._losses:
            family, size = self.job.source.family, self.options.batch_size
            with self._repaired(plan):
                self._losses[mask] = loss_under(self.model(), family, plan, self.windows, size, name)
        return self._losses[mask]

    def _repaired(self, plan: PruningPlan) -> AbstractContextManager[Any]:
        """As ``--reconstruct`` asks, in a dry run too: it shows what the same command would do."""
        options = self.options
        if options.reconstruct == "none" or self.calibration is None:
            return nullcontext()
        how = asked_repair(self.job, options)
        return repaired_for_now(self.model(), self.job.source.family, plan, self.calibration, how)

    def describe(self) -> dict[str, Any]:
        """For the reports: which text it was."""
        windows = self.windows
        return {
            "dataset": windows.dataset,
            "num_windows": len(windows),
            "seq_len": windows.seq_len,
            "source": windows.source,
            "sha256": windows.fingerprint,
        }


def trial_windows(job: Job, options: argparse.Namespace) -> TokenWindows:
    """Calibration text that importance did not see, as far as the text is long enough."""
    tokenizer, drawn = job.source.tokenizer, options.num_samples
    return calibration_windows(options.dataset, tokenizer, TRIAL_WINDOWS, options.seq_len, options.seed, after=drawn)


def loss_under(
    model: Any, family: Family, plan: PruningPlan, windows: TokenWindows, batch_size: int | None, name: str
) -> np.ndarray:
    """float64 (N,): nats per token of each window, as if ``plan`` had been carried out. The model is left as found."""
    with without_removed_groups(decoder_layers(model, family), family, plan):
        nll = window_nll(model, windows.ids, batch_size=batch_size, description=name)
    return nll / (windows.seq_len - 1)


def removes_as_much(plan: PruningPlan, other: PruningPlan) -> bool:
    """Whether a plan is of equal size, or removes more: losses of plans that spare parameters prove nothing."""
    return other.removed_params - plan.removed_params <= EQUAL_SIZE * plan.architecture.total_params


def not_worse(nll: np.ndarray, other: np.ndarray) -> bool:
    """Whether the first loss, float64 (N,), is finite and on average no higher than the other."""
    return bool(np.isfinite(nll).all() and (not np.isfinite(other).all() or np.mean(nll) <= np.mean(other)))


def lower(nll: np.ndarray, other: np.ndarray) -> bool:
    """Whether the first loss is strictly the lower one; of equal plans the one at hand stays."""
    return not_worse(nll, other) and not (np.isfinite(other).all() and np.mean(nll) == np.mean(other))


def against(nll: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Mean and standard error of the paired difference, nats per token."""
    mean, error = paired(nll, other)
    return {"mean": mean, "standard_error": error}


def in_words(nll: np.ndarray, other: np.ndarray) -> str:
    mean, error = paired(nll, other)
    return f"{np.mean(nll):.4f} against {np.mean(other):.4f} nats/token ({mean:+.4f} ± {error:.4f})"
