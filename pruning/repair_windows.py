"""The text of a repair: windows that are fitted, the same tokens shuffled, and windows that no refit sees.

The dense model is the teacher, so any tokens make an example. Text ``mixed`` adds to the windows that are fitted up to
twice as many with the same tokens in random order: inputs that the calibration text alone never shows, which other text
may. Text that is long enough shows them itself, and teaches more: shuffled windows fill up to ``ENOUGH_TOKENS``, or for
wide modules to ``TOKENS_AN_INPUT`` for each of their inputs, and no further.
"""

from dataclasses import dataclass

import numpy as np

from core import ranks
from core.groups import Architecture

CHECK_EVERY = 4
SHUFFLES = 2
# docs/calibration.md, How much text, says what these were chosen by.
ENOUGH_TOKENS, TOKENS_AN_INPUT = 73_728, 48


@dataclass(frozen=True)
class RepairWindows:
    """ids: int64 (N, T), fitted windows first, then ``num_shuffled`` shuffled ones, then those held out."""

    ids: np.ndarray
    num_fitted: int
    num_shuffled: int

    @staticmethod
    def of(ids: np.ndarray, text: str, architecture: Architecture) -> "RepairWindows":
        """ids: int64 (N, T), the calibration windows. text: ``mixed``, or ``calibration`` for nothing shuffled.
        architecture: of the model whose modules are refitted."""
        check = check_windows(len(ids))
        fitted = ids[~check]
        wanted = shuffled_windows(len(fitted), fitted.shape[1], architecture) if text == "mixed" else 0
        shuffled = shuffled_tokens(fitted)[:wanted] if wanted else fitted[:0]
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


def shuffled_windows(fitted: int, seq_len: int, architecture: Architecture) -> int:
    """How many windows of shuffled tokens go with so many that are fitted."""
    widest = max(max(shape.intermediate_size, shape.num_heads * shape.head_dim) for shape in architecture.layers)
    room = max(ENOUGH_TOKENS, TOKENS_AN_INPUT * widest) // seq_len - fitted
    return min(SHUFFLES * fitted, max(0, room))


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
