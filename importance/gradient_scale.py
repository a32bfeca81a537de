"""How large gradients are: mean |g| and norm of each layer, window by window, and over windows."""

import numpy as np
import torch

from core.measured import GradientStatistics


class GradientNorms:
    """mean |g| and L2 norm of each layer's gradients, a window at a time; on the layer's device until they are read."""

    def __init__(self, num_layers: int, source: str) -> None:
        self.num_layers, self.source = num_layers, source
        self.start()

    def start(self) -> None:
        self.found: dict[int, list[torch.Tensor]] = {}  # by layer: l1 and l2 of a tensor, of the next, ...
        self.count = np.zeros(self.num_layers)

    def add(self, layer: int, l1: torch.Tensor, l2: torch.Tensor, count: int) -> None:
        """l1, l2: (B,), sum |g| and L2 norm of one tensor's gradients. count: its values in one window."""
        self.found.setdefault(layer, []).extend((l1, l2))
        self.count[layer] += count

    def tensors(self) -> list[torch.Tensor]:
        """float64 (B,) by watched layer: sums of |g|, then sums of g^2. One stack a layer: kernels are few."""
        stacked = [torch.stack(norms).double() for norms in self.found.values()]
        return [*(norms[::2].sum(0) for norms in stacked), *(norms[1::2].square().sum(0) for norms in stacked)]

    def read(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """mean |g| and L2 norm, each float64 (B, L), from what ``tensors`` gave; 0 in layers that were not watched."""
        l1, l2 = np.zeros((2, len(rows[0]), self.num_layers))
        watched = list(self.found)
        l1[:, watched] = np.stack(rows[: len(watched)], 1)
        l2[:, watched] = np.stack(rows[len(watched) :], 1)
        return l1 / np.maximum(self.count, 1), np.sqrt(l2)


class LayerGradients:
    """Running mean, norm, min and max of each layer's raw gradients; one row a window, float64 on the CPU."""

    def __init__(self, num_layers: int) -> None:
        self.mean = np.zeros(num_layers)
        self.norm = np.zeros(num_layers)
        self.min = np.full(num_layers, np.inf)
        self.max = np.full(num_layers, -np.inf)

    def add(self, mean: np.ndarray, norm: np.ndarray, layers: slice = slice(None)) -> None:
        """mean |g| and L2 norm, each (windows, L); of them only those of ``layers`` count."""
        mean, norm = mean[:, layers], norm[:, layers]
        self.mean[layers] += mean.sum(0)
        self.norm[layers] += norm.sum(0)
        self.min[layers] = np.minimum(self.min[layers], mean.min(0))
        self.max[layers] = np.maximum(self.max[layers], mean.max(0))

    def add_those_of(self, other: "LayerGradients") -> None:
        """What another process saw of other windows."""
        self.mean += other.mean
        self.norm += other.norm
        self.min = np.minimum(self.min, other.min)
        self.max = np.maximum(self.max, other.max)

    def statistics(self, source: str, windows: int) -> GradientStatistics:
        """source: which gradients these are. windows: how many were added of each layer."""
        n = max(windows, 1)
        return GradientStatistics(self.mean / n, self.norm / n, self.min, self.max, source)
