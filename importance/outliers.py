"""Outlier channels: MLP channels whose output dwarfs that of the others in their block ("super weights").

    norm_j = ||x_j||_2 * ||w_down,j||_2 = ||x_j w_down,j^T||_F         factor_j = norm_j / median over the block

x_j is channel j's input to ``down_proj`` over all tokens of the windows, w_down,j its column; so norm_j is the norm of
all that the channel ever adds to the residual stream. A channel is an outlier where factor_j > OUTLIER_FACTOR. Such
channels make the massive activations that the whole model leans on (Yu et al. 2024, arXiv:2411.07191; Sun et al. 2024,
arXiv:2402.17762), and a first-order importance may not see it: their gradient is often tiny.

KV groups are left out: a block has only a handful, of which no median can be told, and each sums hundreds of inputs.
"""

from typing import Any

import numpy as np
import torch

from core.errors import NumericalError
from core.families import Family
from core.groups import MLP, Architecture
from core.measured import Outliers
from core.windows import TokenWindows
from importance.input_norms import InputSquares
from importance.over_windows import over_windows
from importance.passes import Forward
from importance.tally import Tally

OUTLIER_FACTOR = 30.0


@torch.no_grad()
def find_outliers(
    model: Any, family: Family, architecture: Architecture, windows: TokenWindows, *, batch_size: int | None = None
) -> Outliers:
    """One forward pass over the windows.

    A block whose median is 0 has no outlier: nothing to compare with. Raises NumericalError when more than 5 % of the
    windows yield NaN or Inf.
    """
    search = _Search(model, family, architecture)
    tally = over_windows(model, windows, Forward(model), search, batch_size=batch_size, description="outliers")
    rows, factors = zip(*(search.found[layer] for layer in sorted(search.found)), strict=True)
    return Outliers(np.concatenate(rows), np.concatenate(factors), OUTLIER_FACTOR, tally.used)


class _Search(InputSquares):
    """found: rows of the group table and factors, by layer."""

    def __init__(self, model: Any, family: Family, architecture: Architecture) -> None:
        super().__init__(model, family, kinds=(MLP,))
        self.family, self.architecture = family, architecture
        self.found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def finish(self, layer: int, tally: Tally) -> None:
        ((_, module),) = self.of_layer(layer)
        squares = self.total[layer, MLP]
        norms = (squares.sqrt() * torch.linalg.vector_norm(module.weight.float(), dim=0)).cpu().numpy()
        if not np.isfinite(norms).all():
            raise NumericalError(f"NaN or Inf in the weight of layer {layer} {self.family.mlp_output}: is it intact?")
        found, factor = outliers_among(norms)
        self.found[layer] = found + self.architecture.groups.rows(layer, MLP).start, factor


def outliers_among(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a block's outliers, int64 (n,) ascending, and their factors, float64 (n,). norms: float64 (F,)."""
    middle = float(np.median(norms))
    if middle <= 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    factor = norms / middle
    found = np.flatnonzero(factor > OUTLIER_FACTOR)
    return found, factor[found]
