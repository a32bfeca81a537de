"""The text of a repair: windows that are fitted, the same tokens shuffled, and windows that no refit sees.

The dense model is the teacher, so any tokens make an example. Text ``mixed`` adds to the windows that are fitted twice
as many with the same tokens in random order: inputs that the calibration text alone never shows, which other text may.
"""

from dataclasses import dataclass

import numpy as np

from core import ranks

CHECK_EVERY = 4
SHUFFLES = 2


@dataclass(frozen=True)
class RepairWindows:
    """ids: int64 (N, T), fitted windows first, then ``num_shuffled`` shuffled ones, then those held out."""

    ids: np.ndarray
    num_fitted: int
    num_shuffled: int

    @staticmethod
    def of(ids: np.ndarray, text: str) -> "RepairWindows":
        """ids: int64 (N, T), the calibration windows. text: ``mixed``, or ``calibration`` for nothing shuffled."""
        check = check_windows(len(ids))
        fitted = ids[~check]
        shuffled = shuffled_tokens(fitted) if text == "mixed" else fitted[:0]
        return RepairWindows(np.concatenate([fitted, shuffled, ids[check]]), len(fitted), len(shuffled))

    def shared_out(self) -> "RepairWindows":
        """This process's share of each part, where several repair together; the fitted and the shuffled are one."""
        fit, check = (self.ids[part.start : part.stop][ranks.share(len(part))] for part in (self.fit, self.check))
        return RepairWindows(np.concatenate([fit, check]), len(fit), 0)

    @property
    def fit(self) -> range:
        """Windows that refits see."""
        return range(self.num_fitted + self.num_shuffled)

    @property
    def check(self) -> range:
        """Windows that decide how strongly, and whether at all."""
        return range(self.num_fitted + self.num_shuffled, len(self.ids))


def check_windows(num_windows: int) -> np.ndarray:
    """bool (N,): every fourth window, or the last one where there are fewer."""
    check = np.arange(num_windows) % CHECK_EVERY == CHECK_EVERY - 1
    check[-1] |= not check.any()
    return check


def shuffled_tokens(ids: np.ndarray, times: int = SHUFFLES) -> np.ndarray:
    """int64 (times · N, T): the same tokens in random orders over all windows, but the first of each (BOS, mostly).

    The orders are those of a fixed seed, so a repair depends on its windows alone.
    """
    mixed, generator = np.tile(ids, (times, 1)), np.random.default_rng(0)
    for rows in np.split(mixed, times):
        rows[:, 1:] = generator.permutation(ids[:, 1:].reshape(-1)).reshape(ids[:, 1:].shape)
    return mixed
