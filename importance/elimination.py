"""Greedy removal of a linear map's inputs when the outputs may be refitted: optimal brain surgeon, group by group.

A map y = V x has n inputs in groups of ``run`` neighbours. H = E[x x^T] + lambda I, lambda = RIDGE * mean diagonal,
so the error of another map U is E|Vx - Ux|^2 + lambda |V - U|^2. Without the inputs c the best U leaves the error

    tr( V_c [ (H^-1)_cc ]^-1 V_c^T )         with        U = V - V_c [ (H^-1)_cc ]^-1 (H^-1)_c,:

(Hassibi and Stork 1993; Frantar and Alistarh 2022, arXiv:2208.11580; for structures Kurtic et al. 2023, ZipLM,
arXiv:2302.04089). The group of the smallest error goes, V becomes U, H^-1 becomes that of the inputs left,

    H^-1  <-  H^-1 - (H^-1)_:c [ (H^-1)_cc ]^-1 (H^-1)_c,:

and the search begins again, until nothing is left. The errors add up: after any number of removals their sum is the
error of the best map on the inputs left, so an input that others can stand in for costs next to nothing, until
those others go.

Single inputs need no outputs: the error of c is G_cc / (H^-1)_cc with G = V^T V, and with s = (H^-1)_c,: / (H^-1)_cc,
g = G_c,: and h = g - g_c s / 2 a removal makes

    H^-1  <-  H^-1 - (H^-1)_cc s^T s        G  <-  G - s^T h - h^T s

Only diagonals are kept up to date at each step. The rows of c come from the matrices as they were when a block of
BLOCK removals began, less the vectors of the removals since; after the block these vectors update both matrices at
once, as products. That is exact, takes about 4 n^3 operations with the inverse, and on a GPU no step waits for the
host. Everything is float64, up to four matrices (n, n) at once.
"""

from dataclasses import dataclass

import numpy as np
import torch

RIDGE = 0.01  # of the mean diagonal of H
BLOCK = 128  # removals between two updates of the matrices


@dataclass(frozen=True)
class Elimination:
    """order: int64 (G,), groups in the order they go. cost: float64 (G,), the error that each removal added."""

    order: np.ndarray
    cost: np.ndarray


@torch.no_grad()
def eliminate(moment: torch.Tensor, weight: torch.Tensor, run: int, *, ridge: float = RIDGE) -> Elimination:
    """Remove all groups, the cheapest first; of equal ones that with the lowest index.

    moment: (n, n), E[x x^T], any float dtype. weight: (C, n), V. run: inputs a group, n = G * run. A moment that
    is all zeros takes a ridge of 1 in its place.
    """
    inverse = _damped_inverse(moment, ridge)
    order, cost = _single_inputs(inverse, weight.double()) if run == 1 else _groups(inverse, weight.double(), run)
    return Elimination(order.cpu().numpy(), cost.cpu().numpy())


def _damped_inverse(moment: torch.Tensor, ridge: float) -> torch.Tensor:
    """H^-1, float64 (n, n)."""
    hessian = moment.double()  # a copy, unless it is float64 already
    hessian = hessian.clone() if hessian is moment else hessian
    mean = hessian.diagonal().mean()
    hessian.diagonal().add_(torch.where(mean > 0, ridge * mean, torch.ones_like(mean)))
    inverse: torch.Tensor = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return inverse


def _single_inputs(inverse: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Order and costs, both (n,), on the device."""
    gram = weight.T @ weight
    left = torch.arange(len(gram), device=gram.device)
    order, cost = [], []
    while len(left):
        block = _Block(inverse, gram, min(BLOCK, len(left)))
        for step in range(block.size):
            block.remove_cheapest(step)
        order.append(left[block.gone])
        cost.append(block.cost)
        stays = block.stays()
        left, (inverse, gram) = left[stays], block.updated(stays)
    return torch.cat(order), torch.cat(cost)


class _Block:
    """Consecutive removals from the inputs left, R of them, without touching the matrices.

    inverse, gram: (R, R), H^-1 and G as the block begins; a, g: (R,), their diagonals as they are now. rows, shares:
    (size, R), row c of H^-1 and s of each removal, whose product is what H^-1 loses. left, right: (2 size, R), s and h
    of each removal, and h and s: G loses their product. gone: int64 (size,), places among those left. cost: (size,).
    """

    def __init__(self, inverse: torch.Tensor, gram: torch.Tensor, size: int) -> None:
        self.inverse, self.gram, self.size = inverse, gram, size
        self.a, self.g = inverse.diagonal().clone(), gram.diagonal().clone()
        self.rows = gram.new_empty(size, len(gram))
        self.left, self.right = gram.new_empty(2, 2 * size, len(gram))
        self.shares = self.left[::2]
        self.gone = torch.empty(size, dtype=torch.int64, device=gram.device)
        self.cost = gram.new_empty(size)

    def remove_cheapest(self, step: int) -> None:
        errors = (self.g / self.a).clamp_(min=0)
        c = errors.argmin(keepdim=True)  # (1,) on the device, like all that follows
        self.gone[step : step + 1] = c
        self.cost[step : step + 1] = errors.index_select(0, c)
        row, g = self._rows(c, step)
        s = torch.div(row, row.index_select(0, c), out=self.left[2 * step])
        h = torch.addcmul(g, s, g.index_select(0, c), value=-0.5, out=self.left[2 * step + 1])
        self.right[2 * step], self.right[2 * step + 1] = h, s
        self.a.addcmul_(s, row, value=-1).index_fill_(0, c, 1.0)
        self.g.addcmul_(s, h, value=-2).index_fill_(0, c, torch.inf)  # never the cheapest again

    def _rows(self, c: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows c of H^-1, which is kept, and of G as they are now, each (R,)."""
        row, g = self.inverse.index_select(0, c)[0], self.gram.index_select(0, c)[0]
        if step:
            before, pairs = self.rows[:step], self.left[: 2 * step]
            row = torch.addmv(row, before.T, self.shares[:step].index_select(1, c)[:, 0], alpha=-1)
            g = torch.addmv(g, pairs.T, self.right[: 2 * step].index_select(1, c)[:, 0], alpha=-1)
        self.rows[step] = row
        return row, g

    def stays(self) -> torch.Tensor:
        """int64 (R - size,), places of those left, ascending; their number is known without asking the device."""
        gone = torch.zeros(len(self.gram), dtype=torch.uint8, device=self.gram.device).index_fill_(0, self.gone, 1)
        return gone.argsort(stable=True)[: len(gone) - self.size]

    def updated(self, stays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """H^-1 and G of those left, after all removals of the block."""
        pairs = (self.inverse, self.rows, self.shares), (self.gram, self.left, self.right)
        inverse, gram = (
            matrix[stays[:, None], stays].addmm_(x.index_select(1, stays).T, y.index_select(1, stays), alpha=-1)
            for matrix, x, y in pairs
        )
        return inverse, gram


def _groups(inverse: torch.Tensor, weight: torch.Tensor, run: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``_single_inputs`` for groups of several inputs, of which a block has a few: everything anew at each step."""
    left = torch.arange(weight.shape[1] // run, device=weight.device)
    order, cost = [], []
    while len(left):
        errors = _group_errors(inverse, weight, run).clamp(min=0)
        gone = errors.argmin(keepdim=True)
        order.append(left[gone])
        cost.append(errors[gone])
        places = torch.arange(len(left) - 1, device=left.device)
        stays = places + (places >= gone)
        c, k = _inputs(gone, run), _inputs(stays, run)
        left = left[stays]
        across, weight_c = inverse[c][:, k], weight[:, c]
        solved = torch.linalg.solve(inverse[c][:, c], across)  # [(H^-1)_cc]^-1 (H^-1)_ck
        inverse, weight = inverse[k][:, k] - across.T @ solved, weight[:, k] - weight_c @ solved
    return torch.cat(order), torch.cat(cost)


def _inputs(groups: torch.Tensor, run: int) -> torch.Tensor:
    """Positions along n of groups, given by their place among those left."""
    return (groups[:, None] * run + torch.arange(run, device=groups.device)).flatten()


def _group_errors(inverse: torch.Tensor, weight: torch.Tensor, run: int) -> torch.Tensor:
    """float64 (R,): tr(U_c [(H^-1)_cc]^-1 U_c^T) of each group."""
    groups = weight.shape[1] // run
    blocks = inverse.view(groups, run, groups, run).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(-1, groups, run).permute(1, 2, 0)  # (R, run, C)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def convex(cost: np.ndarray) -> np.ndarray:
    """float64 (G,): the nearest non-decreasing sequence, by pooling neighbours that violate it (PAV).

    The sum of the first k costs, as a function of k, becomes its largest convex minorant: taking groups from
    several blocks by ascending value then spends a budget as well as any choice along the blocks' orders can, at
    the corners of those minorants.
    """
    means: list[float] = []
    counts: list[int] = []
    for value in cost.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            last, size = means.pop(), counts.pop()
            means[-1] = (means[-1] * counts[-1] + last * size) / (counts[-1] + size)
            counts[-1] += size
    return np.repeat(means, counts)


def in_order(elimination: Elimination) -> np.ndarray:
    """float64 (G,), by group: its convex cost, raised by 1e-12 of itself a place, so that pooled groups, which share
    one value, rank in the order they were removed in. Costs of 0 stay 0: such groups may go in any order."""
    values = np.empty(len(elimination.cost))
    values[elimination.order] = convex(elimination.cost) * (1 + 1e-12 * np.arange(len(values)))
    return values
