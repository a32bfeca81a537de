"""Sums over tokens from which a linear module is refitted and its error told, whatever the number of tokens.

Products are taken in float32 over a batch and added up in float64. Nothing is added before everything of a batch is
computed, so one that runs out of memory leaves no trace, and nothing waits for the device.
"""

import torch

from core.products import product

PANEL = 128  # rows of a Gram matrix computed at once, at least; what lies below its diagonal is mirrored


class Moments:
    """Of a module's inputs k and of r, what its outputs y lack.

    gram: (n, n) Σ k k^T. cross: (C, n) Σ r k^T. inputs: (n,) Σ k. lack: (C,) Σ r. lack_energy: Σ ‖r‖².
    target_energy: Σ ‖y‖². tokens: their number. With weights all of these are weighted sums, the number included.
    """

    def __init__(
        self, outputs: int, inputs: int, device: torch.device, *, bias: bool = True, judge: bool = True
    ) -> None:
        """bias: whether the module has one; inputs and lack are left out (0) otherwise. judge: whether ``error`` will
        be asked for; the energies are left out otherwise."""
        self.bias, self.judge = bias, judge
        self._gram = _zeros(device, inputs, inputs)
        self.cross, self.inputs, self.lack = (_zeros(device, *s) for s in ((outputs, inputs), (inputs,), (outputs,)))
        self._sums = _zeros(device, 3)  # tokens and the two energies

    def sums(self) -> tuple[torch.Tensor, ...]:
        """All of them, in place."""
        return self._gram, self.cross, self.inputs, self.lack, self._sums

    @property
    def gram(self) -> torch.Tensor:
        """The sums themselves, not a copy: at 14,336 inputs they take 1.6 GB."""
        return _mirror(self._gram)

    @property
    def tokens(self) -> float:
        return float(self._sums[0])

    @property
    def lack_energy(self) -> float:
        return float(self._sums[1])

    @property
    def target_energy(self) -> float:
        return float(self._sums[2])

    @property
    def finite(self) -> bool:
        return bool((self._gram.diagonal().sum() + self.cross.sum() + self._sums.sum()).isfinite())

    def add(self, k: torch.Tensor, r: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """k (tokens, n) in the model's dtype, r and y (tokens, C) and weight (tokens, 1) float32."""
        weighted = k if weight is None else weight * k
        panels, cross = _gram_panels(k, weighted), product(r.T, weighted, k.dtype)
        means = [values.double().sum(0) for values in (weighted, r if weight is None else weight * r) if self.bias]
        counted = torch.ones(len(k), dtype=torch.float64, device=k.device) if weight is None else weight[:, 0].double()
        sums = torch.stack([counted.sum(), *(_energy(values, counted) for values in (r, y) if self.judge)])
        _add_panels(self._gram, panels)
        self.cross += cross
        for total, part in zip((self.inputs, self.lack), means, strict=False):
            total += part
        self._sums[: len(sums)] += sums

    def error(self, change: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> float:
        """Σ ‖r - change k - shift‖² / Σ ‖y‖²; change float64 (C, n), shift float64 (C,). 0 for a silent target."""
        total = self.lack_energy
        if change is not None:
            total += float(((change @ self.gram - 2 * self.cross) * change).sum())
            if shift is not None:
                total += float(shift @ (2 * (change @ self.inputs) - 2 * self.lack + self.tokens * shift))
        return max(total, 0.0) / self.target_energy if self.target_energy else 0.0


class InputMoments:
    """Of what modules read, x in the dense stream and k in the pruned one; float64 (n, n).

    gram: Σ k k^T. cross: Σ (x - k) k^T. lack: Σ (x - k)(x - k)^T. Enough for any weights that read them.
    """

    def __init__(self, inputs: int, device: torch.device, *, judge: bool = True) -> None:
        """judge: whether ``error`` will be asked for; lack is left out otherwise."""
        self.judge = judge
        self._gram, self.cross, self._lack = _zeros(device, 3, inputs, inputs)
        self._tokens = _zeros(device, 1)

    def sums(self) -> tuple[torch.Tensor, ...]:
        """All of them, in place."""
        return self._gram, self.cross, self._lack, self._tokens

    @property
    def gram(self) -> torch.Tensor:
        return _mirror(self._gram)

    @property
    def lack(self) -> torch.Tensor:
        return _mirror(self._lack)

    def add(self, x: torch.Tensor, k: torch.Tensor) -> None:
        """x, k (tokens, n) in the model's dtype."""
        r = x.float() - k.float()
        gram, cross = _gram_panels(k, k), product(r.T, k, k.dtype)
        lack = _gram_panels(r, r, k.dtype) if self.judge else []
        _add_panels(self._gram, gram)
        _add_panels(self._lack, lack)
        self.cross += cross
        self._tokens += len(k)

    def seen_by(self, weight: torch.Tensor) -> Moments:
        """The sums for weight (C, n) with the target weight · x: what its outputs lack is weight · (x - k)."""
        w = weight.double()
        found = Moments(0, 0, w.device, bias=False, judge=self.judge)
        found._gram, found.cross = self.gram, w @ self.cross
        found._sums[0] = self._tokens[0]
        if self.judge:
            square = w.T @ w  # Σ ‖w v‖² over tokens is the sum over entries of square * Σ v v^T
            found._sums[1] = (square * self.lack).sum()
            found._sums[2] = (square * (self.gram + self.cross + self.cross.T + self.lack)).sum()
        return found


def _zeros(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)


def _energy(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float64 (): Σ weight ‖v‖² over rows v of values (tokens, C) float32, weight (tokens,) float64."""
    return weight @ torch.linalg.vector_norm(values, dim=1).double().square()


def _gram_panels(
    k: torch.Tensor, weighted: torch.Tensor, dtype: torch.dtype | None = None
) -> list[tuple[int, torch.Tensor]]:
    """k^T weighted, symmetric (n, n), as panels of rows from the diagonal on: (first row, (rows, n - first row))."""
    return [
        (rows.start, product(k[:, rows].T, weighted[:, rows.start :], dtype or k.dtype)) for rows in _panels(k.shape[1])
    ]


def _panels(n: int) -> list[slice]:
    rows = max(PANEL, -(-n // 4))
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _add_panels(total: torch.Tensor, panels: list[tuple[int, torch.Tensor]]) -> None:
    for start, panel in panels:
        total[start : start + len(panel), start:] += panel


def _mirror(sums: torch.Tensor) -> torch.Tensor:
    """In place: what lies below the diagonal becomes what lies above it. Panels that are added later find it so."""
    for rows in _panels(len(sums)):
        block = sums[rows, rows]
        block.copy_(block.triu() + block.triu(1).T)
        sums[rows.stop :, rows] = sums[rows, rows.stop :].T
    return sums


def bytes_to_solve(outputs: int, inputs: int) -> int:
    """What two sets of ``Moments`` take, and a refit from them with its error."""
    return 8 * (4 * inputs * inputs + 6 * outputs * inputs)
