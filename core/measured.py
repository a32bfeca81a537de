"""What the importance stage measured: importances, gradient statistics, priors. Arrays only."""

from dataclasses import dataclass, field

import numpy as np

GRADIENTS_OF_WEIGHTS = "weights"
GRADIENTS_OF_INPUTS = "inputs of o_proj/down_proj"
GRADIENTS_OF_OUTPUTS = "outputs of o_proj/down_proj"
NO_GRADIENTS = "none"


@dataclass(frozen=True)
class GradientStatistics:
    """Raw gradient scale of each layer, before any transform. All arrays float64 of shape (L,).

    mean: mean over windows of the mean |g| over the layer's prunable tensors. norm: mean over windows of the L2
    norm of the same gradients. min, max: smallest and largest mean |g| over windows.
    source: which gradients these are, one of the GRADIENTS_OF constants.
    """

    mean: np.ndarray
    norm: np.ndarray
    min: np.ndarray
    max: np.ndarray
    source: str


@dataclass(frozen=True)
class Importance:
    """Raw criterion values: ``values`` float64 (G,), higher = keep, in the order of the GroupTable.

    gradients is None where the criterion saw none. windows_used counts the windows behind the values,
    windows_skipped those that yielded NaN or Inf. second_order_share is set by ``taylor_2nd`` only.
    halves: float64 (2, G), the same from every other window, the first one's and the second one's half; None where
    the criterion does not come from sums over windows, memory did not hold two of them, or there were not two windows.
    """

    values: np.ndarray
    criterion: str
    gradients: GradientStatistics | None
    windows_used: int = 0
    windows_skipped: int = 0
    second_order_share: float | None = None
    notes: list[str] = field(default_factory=list)
    halves: np.ndarray | None = None


@dataclass(frozen=True)
class Prior:
    """Measured importance of whole blocks and layers: what removing each alone costs.

    block: float64 (L, kinds), columns attention, mlp and what other kinds the model has, NaN where a layer has no such
    block (``GroupTable.spread``). layer: float64 (L,). method: ``loss`` (nats per token) or
    ``similarity`` (1 - cosine). dense_nll: nats per token of the dense model, None for ``similarity``.
    """

    block: np.ndarray
    layer: np.ndarray
    method: str
    num_windows: int
    dense_nll: float | None = None


@dataclass(frozen=True)
class Outliers:
    """Channels whose output norm is more than ``threshold`` times the median of their block.

    rows: int64 (n,), ascending rows of the GroupTable. factor: float64 (n,), norm over median.
    """

    rows: np.ndarray
    factor: np.ndarray
    threshold: float
    num_windows: int


@dataclass(frozen=True)
class Stability:
    """What two plans share of what they remove, each from half of the windows; windows: of both halves together.

    overlap, chance: J and J_chance (docs/formulas.md, Comparing runs), None where ``reason`` says why.
    """

    overlap: float | None
    chance: float | None
    windows: int
    reason: str | None = None
