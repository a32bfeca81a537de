"""Plans tried on calibration text that importance did not see, their removed groups silenced by hooks; no surgery.

What is left is repaired as the run will repair it, then put back: a plan is worth what it is worth when delivered.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from core.plan import EQUAL_SIZE, PruningPlan
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from models.architecture import decoder_layers
from models.expected import without_removed_groups
from pruning.repair import repaired_for_now
from pruning.trials import paired

if TYPE_CHECKING:
    from run.session import Session

JUDGING_WINDOWS = 16


class Judge:
    """The loss of plans on judging windows, every plan measured once."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self._losses: dict[bytes, np.ndarray] = {}

    @property
    def windows(self) -> TokenWindows:
        return self.session.judging

    def loss(self, plan: PruningPlan, name: str) -> np.ndarray:
        """float64 (N,): nats per token of each window under ``plan``, repaired as the run will repair it, in a dry run
        too. The model is left as found."""
        mask = plan.keep.tobytes()
        if mask not in self._losses:
            session = self.session
            with self._repaired(plan):
                self._losses[mask] = loss_under(
                    session.dense(), session.family, plan, self.windows, session.batch_size, name
                )
        return self._losses[mask]

    def mean_loss(self, plan: PruningPlan, name: str) -> float:
        return float(np.mean(self.loss(plan, name)))

    def _repaired(self, plan: PruningPlan) -> AbstractContextManager[Any]:
        session = self.session
        if session.settings.repair.reconstruct == "none" or session.calibration is None or plan.keep.all():
            return nullcontext()
        return repaired_for_now(session.dense(), session.family, plan, session.calibration, session.repair)

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


def loss_under(
    model: Any, family: Any, plan: PruningPlan, windows: TokenWindows, batch_size: int | None, name: str
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


def is_lower(nll: np.ndarray, other: np.ndarray) -> bool:
    """Whether the first loss is strictly the lower one; of equal plans the one at hand stays."""
    return not_worse(nll, other) and not (np.isfinite(other).all() and np.mean(nll) == np.mean(other))


def loss_difference(nll: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Mean and standard error of the paired difference, nats per token."""
    mean, error = paired(nll, other)
    return {"mean": mean, "standard_error": error}


def difference_text(nll: np.ndarray, other: np.ndarray) -> str:
    mean, error = paired(nll, other)
    return f"{np.mean(nll):.4f} against {np.mean(other):.4f} nats/token ({mean:+.4f} ± {error:.4f})"
