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

from core.batching import for_each_batch
from core.errors import NumericalError
from core.families import Family
from core.groups import MLP, Architecture
from core.measures import Outliers
from core.windows import TokenWindows
from importance.measuring import left_as_found

OUTLIER_FACTOR = 30.0


@torch.no_grad()
def find_outliers(
    model: Any, family: Family, architecture: Architecture, windows: TokenWindows, *, batch_size: int | None = None
) -> Outliers:
    """One forward pass over the windows. Squares are summed in float32 a batch and in float64 across batches.

    A block whose median is 0 has no outlier: nothing to compare with. Raises NumericalError on NaN or Inf.
    """
    layers = list(model.get_submodule(family.layers))
    modules = [layer.get_submodule(family.mlp_output) for layer in layers]
    device = next(model.parameters()).device
    squares = [torch.zeros(module.in_features, dtype=torch.float64, device=device) for module in modules]
    pending: dict[int, torch.Tensor] = {}

    def watch(index: int, args: tuple[Any, ...]) -> None:
        pending[index] = args[0].float().square().sum((0, 1))

    def step(batch: np.ndarray) -> None:
        pending.clear()
        model(input_ids=torch.from_numpy(batch).to(device), use_cache=False, logits_to_keep=1)
        for index, added in pending.items():
            squares[index] += added

    with left_as_found(model) as handles:
        for index, module in enumerate(modules):
            handles.append(module.register_forward_pre_hook(lambda _module, args, index=index: watch(index, args)))
        for_each_batch(windows.ids, step, batch_size, "outliers")
    rows, factors = [], []
    for index, module in enumerate(modules):
        norms = (squares[index].sqrt() * torch.linalg.vector_norm(module.weight.float(), dim=0)).cpu().numpy()
        if not np.isfinite(norms).all():
            raise NumericalError(f"NaN or Inf in the inputs of layer {index} {family.mlp_output}; try --dtype float32")
        found, factor = outliers_among(norms)
        rows.append(found + architecture.groups.rows(index, MLP).start)
        factors.append(factor)
    return Outliers(np.concatenate(rows), np.concatenate(factors), OUTLIER_FACTOR, len(windows))


def outliers_among(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a block's outliers, int64 (n,) ascending, and their factors, float64 (n,). norms: float64 (F,)."""
    middle = float(np.median(norms))
    if middle <= 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    factor = norms / middle
    found = np.flatnonzero(factor > OUTLIER_FACTOR)
    return found, factor[found]
